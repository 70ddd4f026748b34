"""The ComfyUI node beside stand-ins for ComfyUI: its weights are those of `merge`, and it stands alone."""

import ast
import copy
import functools
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, is_close, mini, mini_velocity
from mini_adapters import KINDS, seeded_generator
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora, merge, saved_lora_config, set_strength
from mmaudio.lora.checkpoint import AdapterFile, attach_adapter, read_adapter, write_adapter
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.lora.single_file import write_single_file
from mmaudio.model.networks import build_network
from mmaudio.model.spec import MODELS

PACKAGE = ROOT / "comfyui"
ADAPTERS = {name: config for name, config in KINDS.items() if config.enabled}


@functools.cache
def golden_network():
    return mini()


def base_network():
    """A new mini network."""
    return copy.deepcopy(golden_network())


def write_lora(loras, name, config, base_model="tiny_16k"):
    """An adapter whose trained weights have all moved; the name that the node lists it by."""
    network = base_network()
    model = add_lora(network, config, seeded_generator()).eval()
    for number, weight in enumerate(weight for weight in model.parameters() if weight.requires_grad):
        weight.data += 0.02 * torch.randn(weight.shape, generator=seeded_generator(number))
    lora, targets = saved_lora_config(model, config), sorted(lora_layers(model))
    adapter = AdapterFile(lora, adapter_state(model), base_model, "", targets, 3)
    write_adapter(loras / f"{name}.pt", adapter)
    return f"{name}/adapter_model.safetensors"


def merged_state(path, dtype, strength):
    """What `merge` makes of a base file of `dtype`."""
    network = base_network().to(dtype).float()
    model = attach_adapter(network, read_adapter(path), "tiny_16k")
    set_strength(model, strength)
    return {key: value.to(dtype) for key, value in merge(model).state_dict().items()}


def apply(comfyui_node, network, *adapters):
    """Chain nodes, as ComfyUI runs them."""
    with torch.inference_mode():
        for name, strength in adapters:
            network, _ = comfyui_node().apply(network, name, strength)
    return network


def assert_weights(network, expected, dtype, roundings=1):
    for key, value in network.state_dict().items():
        assert value.dtype == dtype
        error = (value.double() - expected[key].double()).abs()
        assert (error <= 2 * roundings * torch.finfo(dtype).eps * expected[key].double().abs().max()).all(), key


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_weights_are_those_of_merge_and_the_input_is_left(comfyui_node, loras, kind, dtype):
    name = f"{kind}/adapter_model.safetensors"
    if not (loras / name).exists():
        write_lora(loras, kind, ADAPTERS[kind])
    network = base_network().to(dtype)
    network.seq_cfg = SimpleNamespace(duration=8.0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    patched = apply(comfyui_node, network, (name, 0.7))
    expected = merged_state(loras / name, dtype, 0.7)
    assert_weights(patched, expected, dtype)
    assert any(not torch.equal(expected[key], before[key]) for key in before)
    patched.seq_cfg.duration = 3.0
    patched.to("meta")
    assert network.seq_cfg.duration == 8.0 and type(patched) is type(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.slow
def test_the_velocity_is_that_of_the_merged_model(comfyui_node, loras):
    name = write_lora(loras, "velocity", ADAPTERS["further"])
    merged = base_network()
    merged.load_state_dict(merged_state(loras / name, torch.float32, 1.0))
    assert is_close(mini_velocity(apply(comfyui_node, base_network(), (name, 1.0))), mini_velocity(merged))


@pytest.mark.slow
def test_the_single_file_is_read_with_its_settings_by_layer(comfyui_node, loras):
    folder = write_lora(loras, "several alphas", ADAPTERS["ranks"], "small_44k")
    adapter = read_adapter(loras / "several alphas.pt")
    write_single_file(loras / "dogs_lora.safetensors", replace(adapter, step=3, data={"train": {"clips": 4}}))
    single, note = comfyui_node().apply(base_network(), "dogs_lora.safetensors", 0.5)
    expected = apply(comfyui_node, base_network(), (folder, 0.5)).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in single.state_dict().items())
    assert note == (
        "dogs_lora.safetensors at 0.5: for small_44k, rank 2 to 8, trained on 4 clips in 3 steps, licence CC-BY-NC-4.0"
    )
    shutil.copy(loras / folder, loras / "renamed.safetensors")
    with pytest.raises(ValueError, match=r"renamed.safetensors: its layers have different alphas: copy adapter_config"):
        comfyui_node().apply(base_network(), "renamed.safetensors", 0.5)


def test_strength_0_is_the_identity(comfyui_node, loras):
    name = write_lora(loras, "zero", ADAPTERS["dora"])
    network = base_network()
    assert comfyui_node().apply(network, name, 0.0) == (network, "no adapter")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dora", "all biases", "ranks"])
def test_chained_nodes_add_up_in_any_order(comfyui_node, loras, kind):
    one, other = write_lora(loras, "one", ADAPTERS["rslora"]), write_lora(loras, "other", ADAPTERS[kind])
    network = base_network()
    both = apply(comfyui_node, network, (one, 0.5), (other, 1.0))
    reverse = apply(comfyui_node, network, (other, 1.0), (one, 0.5))
    single = [merged_state(loras / one, torch.float32, 0.5), merged_state(loras / other, torch.float32, 1.0)]
    expected = {key: single[0][key] + single[1][key] - value for key, value in base_network().state_dict().items()}
    assert_weights(both, expected, torch.float32, roundings=4)
    assert_weights(reverse, expected, torch.float32, roundings=4)
    note = comfyui_node().apply(both, one, 0.0)[1].splitlines()
    assert note[0].startswith(f"{one} at 0.5: for tiny_16k, rank 4") and note[1].startswith(f"{other} at 1: ")


def test_unchanged_weights_take_no_memory(comfyui_node, loras):
    name = write_lora(loras, "shared", ADAPTERS["dora"])
    network = base_network()
    patched = apply(comfyui_node, network, (name, 1.0))
    shared = {
        key
        for key, value in patched.named_parameters()
        if value.data_ptr() == dict(network.named_parameters())[key].data_ptr()
    }
    assert "t_embed.mlp.0.weight" in shared and "fused_blocks.0.attn.qkv.weight" not in shared


@pytest.mark.slow
def test_what_peft_alone_wrote_is_read_with_its_patterns(comfyui_node, loras):
    patterns = {"alpha_pattern": {r"fused_blocks\.\d+\.attn\.qkv": 3}, "rank_pattern": {"linear1": 2}}
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["qkv", "linear1"], use_rslora=True, **patterns)
    model = get_peft_model(base_network(), config)
    for half in model.parameters():
        half.data += 0.1 * half.requires_grad
    model.save_pretrained(loras / "theirs")
    patched = apply(comfyui_node, base_network(), ("theirs/adapter_model.safetensors", 1.0))
    assert_weights(patched, model.merge_and_unload().state_dict(), torch.float32)
    shutil.copy(loras / "theirs/adapter_model.safetensors", loras / "alone.safetensors")
    with pytest.raises(ValueError, match=r"^alone.safetensors: its alpha is unknown: put PEFT's adapter_config.json"):
        comfyui_node().apply(base_network(), "alone.safetensors", 1.0)
    settings = json.loads((loras / "theirs/adapter_config.json").read_text())
    (loras / "theirs/adapter_config.json").write_text(json.dumps(settings | {"alpha_pattern": {"(a+)+b": 1}}))
    with pytest.raises(ValueError, match="too complicated"):
        comfyui_node().apply(base_network(), "theirs/adapter_model.safetensors", 1.0)


@pytest.mark.parametrize("model", [name for name in MODELS if name != "tiny_16k"])
def test_an_adapter_of_another_model_is_one_clear_error(comfyui_node, loras, model):
    """small_16k and small_44k have the same shapes in the adapted layers: the file's header tells."""
    with torch.device("meta"):
        network = build_network(model)
    name = write_lora(loras, "16k", replace(ADAPTERS["rslora"]), "small_16k" if model != "small_16k" else "large_44k")
    with pytest.raises(ValueError) as error:
        comfyui_node().apply(network, name, 1.0)
    expected = f"{name} is an adapter of small_16k (16 kHz), this model is {model} (44.1 kHz); "
    expected += "ComfyUI-MMAudio loads 44.1 kHz models only: train with --mode 44k"
    if model == "small_16k":
        expected = f"{name} is an adapter of large_44k (44.1 kHz), this model is small_16k (16 kHz); "
        expected += "load large_44k, or train on small_16k"
    assert str(error.value) == expected


def test_files_that_are_no_adapter_for_the_model_are_one_line(comfyui_node, loras):
    with torch.device("meta"):
        small = build_network("small_44k")
    name = write_lora(loras, "other shapes", ADAPTERS["rslora"], "")
    with pytest.raises(ValueError, match=r"does not fit: this model \(small_44k\) has \[.*\] in .*, not \["):
        comfyui_node().apply(small, name, 1.0)
    with pytest.raises(ValueError, match="this is no model of MMAudio: connect MMAudio ModelLoader"):
        comfyui_node().apply(torch.nn.Linear(2, 2), name, 1.0)
    save_file(base_network().state_dict(), loras / "whole.safetensors")
    (loras / "broken.safetensors").write_bytes(b"12345678")
    save_file(
        {"a.lora_A.weight": torch.tensor([float("nan")])},
        loras / "nan.safetensors",
        {"mmaudio": '{"peft": {"peft_type": "LORA"}}'},
    )
    for file, message in {"whole": "alpha is unknown", "broken": "copy it again", "nan": "not finite"}.items():
        with pytest.raises(ValueError, match=f"^{file}.safetensors: .*{message}"):
            comfyui_node().apply(base_network(), f"{file}.safetensors", 1.0)


def test_the_node_lists_safetensors_and_reads_a_file_again_that_changed(comfyui_node, loras):
    name = write_lora(loras, "listed", ADAPTERS["rslora"])
    names = comfyui_node.INPUT_TYPES()["required"]["lora"][0]
    assert name in names and all(other.endswith(".safetensors") for other in names)
    before = comfyui_node.IS_CHANGED(lora=name, strength=1.0)
    write_lora(loras, "listed", LoRAConfig(rank=2))
    assert comfyui_node.IS_CHANGED(lora=name, strength=1.0) != before


def test_the_package_stands_alone():
    """It imports what ComfyUI has; above all no package called mmaudio, since ComfyUI-MMAudio has its own."""
    modules = set()
    for path in PACKAGE.glob("*.py"):
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                modules.add(str(statement.module).partition(".")[0])
    assert modules - sys.stdlib_module_names == {"torch", "safetensors", "folder_paths"}
