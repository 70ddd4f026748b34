"""The example for ComfyUI: its links and its use of our node fit."""

import json

import pytest
from helpers import ROOT

WORKFLOW = json.loads((ROOT / "comfyui" / "example_workflow.json").read_text())
NODES = {node["id"]: node for node in WORKFLOW["nodes"]}


@pytest.mark.parametrize("link", WORKFLOW["links"])
def test_a_link_joins_an_output_and_an_input_of_its_type(link):
    number, source, output, target, place, kind = link
    start, end = NODES[source]["outputs"][output], NODES[target]["inputs"][place]
    assert number in start["links"] and end["link"] == number
    assert start["type"] == kind and end["type"] in (kind, "*")


def test_every_link_of_a_node_is_there():
    numbers = {link[0] for link in WORKFLOW["links"]}
    used = {entry["link"] for node in NODES.values() for entry in node["inputs"]} - {None}
    used |= {number for node in NODES.values() for entry in node["outputs"] for number in entry["links"]}
    assert used == numbers and len(numbers) == WORKFLOW["last_link_id"] and max(NODES) == WORKFLOW["last_node_id"]


def test_our_node_has_the_inputs_and_outputs_of_its_class(comfyui_node):
    node = next(node for node in NODES.values() if node["type"] == "MMAudioLoRA")
    inputs = comfyui_node.INPUT_TYPES()["required"]
    linked = {entry["name"]: entry["type"] for entry in node["inputs"]}
    widgets = [name for name in inputs if name not in linked]
    assert linked == {"mmaudio_model": inputs["mmaudio_model"][0]} and widgets == ["lora", "strength"]
    lora, strength = node["widgets_values"]
    limits = inputs["strength"][1]
    assert lora.endswith(".safetensors") and limits["min"] <= strength <= limits["max"]
    assert [(entry["name"], entry["type"]) for entry in node["outputs"]] == list(
        zip(comfyui_node.RETURN_NAMES, comfyui_node.RETURN_TYPES, strict=True)
    )
