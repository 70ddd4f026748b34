"""What an adapter's keys, shapes and settings tell: which layers, which base model, and what is not read."""

import pytest
import torch
from peft import LoraConfig
from test_networks import mini

from mmaudio.errors import WeightsError
from mmaudio.lora.adapter import LoRAConfig, add_lora, expand_targets
from mmaudio.lora.peft_compat import adapted_modules, likely_models, lora_settings, lora_weights, misfits
from mmaudio.model.networks import build_network
from mmaudio.model.spec import MODELS

QKV = "fused_blocks.0.attn.qkv"


def state_of(model, patterns=None, rank=1):
    """An adapter's zeros in the shapes of a released variant, under PEFT's keys."""
    with torch.device("meta"):
        network = build_network(model)
    config = LoRAConfig(rank) if patterns is None else LoRAConfig(rank, target_modules=patterns)
    state = {}
    for name in expand_targets(network, config.target_modules):
        out, inside, *kernel = network.get_submodule(name).weight.shape
        state[f"base_model.model.{name}.lora_A.weight"] = torch.zeros(rank, inside, *kernel)
        state[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(out, rank, *(1 for _ in kernel))
    return state


@pytest.mark.parametrize(
    ("model", "likely"),
    [
        ("tiny_16k", ["tiny_16k"]),
        ("small_16k", ["small_16k", "small_44k"]),
        ("medium_44k", ["medium_44k"]),
        ("large_44k_v2", ["large_44k", "large_44k_v2"]),
    ],
)
def test_shapes_tell_the_base_model(model, likely):
    assert likely_models(state_of(model)) == likely


def test_a_layer_outside_the_blocks_tells_more():
    assert likely_models(state_of("small_44k", ["fused_blocks[*].ffn", "final_layer.conv"])) == ["small_44k"]


def test_without_a_model_of_as_many_blocks_all_that_fit_are_named():
    assert likely_models(state_of("large_44k", ["fused_blocks[0].ffn"])) == ["medium_44k", "large_44k", "large_44k_v2"]
    assert likely_models(state_of("large_44k", ["fused_blocks[7].ffn"])) == ["medium_44k"]


def test_every_variant_fits_itself_and_misfits_say_where():
    for name in MODELS:
        with torch.device("meta"):
            network = build_network(name)
        assert not misfits(network, state_of(name)), name
    with torch.device("meta"):
        small = build_network("small_16k")
    assert f"{QKV} is 1344 x 448, not 2688 x 896" in misfits(small, state_of("medium_44k"))
    assert "it has no layer fused_blocks.13.attn.qkv" in misfits(small, state_of("large_44k"))


def test_keys_of_a_bare_state_dict_become_pefts():
    network = mini()
    model = add_lora(network, LoRAConfig(2, target_modules=[QKV]))
    expected = {f"base_model.model.{QKV}.lora_{half}.weight" for half in "AB"}
    for source in (model, network):
        found = lora_weights({key: value for key, value in source.state_dict().items() if "lora_" in key})
        assert found.keys() == expected and adapted_modules(found) == [QKV]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (f"{QKV}.lora_magnitude_vector", torch.ones(3), "holds no weights"),
        (f"{QKV}.lora_B.bias", torch.ones(3), "lora_B.bias: an adapter of LoRA's A and B matrices is expected"),
        ("final_layer.conv.weight", torch.ones(3), "holds final_layer.conv.weight"),
        (f"{QKV}.lora_A.weight", torch.tensor([float("nan")]), "not finite"),
        (f"{QKV}.lora_A.weight", torch.ones(2, 2), "without its other half"),
    ],
)
def test_what_is_not_plain_lora_is_named(key, value, words):
    with pytest.raises(WeightsError, match=words):
        lora_weights({key: value})
    with pytest.raises(WeightsError, match="no weights"):
        lora_weights({})


def settings(**changes):
    return LoraConfig(r=4, lora_alpha=6, target_modules=["qkv"], **changes).to_dict()


def test_pefts_settings_become_ours():
    named = settings(lora_dropout=0.2, use_rslora=True, rank_pattern={"qkv": 2, ".*ffn.*": 3}, bias="lora_only")
    expected = LoRAConfig(4, 6.0, 0.2, [QKV], use_rslora=True, rank_pattern={QKV: 2}, bias="lora_only")
    assert lora_settings(named, [QKV]) == expected
    assert lora_settings(settings(use_dora=True), [QKV]) == LoRAConfig(4, 6.0, 0.0, [QKV], use_dora=True)
    assert lora_settings(settings(init_lora_weights="gaussian", layers_to_transform=[0], layers_pattern="a"), [QKV])
    later = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "of_a_later_peft": True}
    assert lora_settings(later, [QKV]) == LoRAConfig(4, 6.0, 0.0, [QKV])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (settings(lora_bias=True), "lora_bias is True; of peft's settings, .*use_dora.* are read"),
        (settings(modules_to_save=["final_layer"]), "modules_to_save"),
        (settings(init_lora_weights="pissa"), "path_initial_model_for_weight_conversion"),
        (settings() | {"peft_type": "LOHA"}, "'LOHA'; only LORA"),
        ({"peft_type": "LORA", "r": 4}, "lora_alpha is missing"),
        (settings() | {"r": 0}, "rank=0"),
        (settings() | {"lora_alpha": "much"}, "makes no sense"),
    ],
)
def test_settings_that_are_not_read_are_named(config, words):
    with pytest.raises(WeightsError, match=words):
        lora_settings(config, [QKV])
