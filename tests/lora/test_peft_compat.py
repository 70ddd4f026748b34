"""What an adapter's keys, shapes and settings tell: which layers, which base model, and what is not read."""

import pytest
import torch
from helpers import mini
from mini_adapters import zero_adapter_state
from peft import LoraConfig

from mmaudio.errors import WeightsError
from mmaudio.lora.adapter import LoRAConfig, add_lora
from mmaudio.lora.peft_compat import (
    adapted_modules,
    check_ranks,
    find_misfits,
    find_possible_models,
    lora_settings,
    lora_weights,
)
from mmaudio.model.networks import build_network
from mmaudio.model.spec import MODELS

QKV = "fused_blocks.0.attn.qkv"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "likely"),
    [
        ("tiny_16k", ["tiny_16k"]),
        ("small_16k", ["small_16k", "small_44k"]),
        ("medium_44k", ["medium_44k"]),
        ("large_44k_v2", ["large_44k", "large_44k_v2"]),
    ],
)
def test_shapes_identify_the_base_model(model, likely):
    assert find_possible_models(zero_adapter_state(model)) == likely


@pytest.mark.slow
def test_a_layer_outside_the_blocks_narrows_the_base_model():
    assert find_possible_models(zero_adapter_state("small_44k", ["fused_blocks[*].ffn", "final_layer.conv"])) == [
        "small_44k"
    ]


@pytest.mark.slow
def test_without_a_matching_number_of_blocks_all_fitting_models_are_listed():
    assert find_possible_models(zero_adapter_state("large_44k", ["fused_blocks[0].ffn"])) == [
        "medium_44k",
        "large_44k",
        "large_44k_v2",
    ]
    assert find_possible_models(zero_adapter_state("large_44k", ["fused_blocks[7].ffn"])) == ["medium_44k"]


@pytest.mark.slow
def test_every_variant_fits_itself_and_misfits_are_located():
    for name in MODELS:
        with torch.device("meta"):
            network = build_network(name)
        assert not find_misfits(network, zero_adapter_state(name)), name
    with torch.device("meta"):
        small = build_network("small_16k")
    assert f"{QKV} is 1344 x 448, not 2688 x 896" in find_misfits(small, zero_adapter_state("medium_44k"))
    assert "it has no layer fused_blocks.13.attn.qkv" in find_misfits(small, zero_adapter_state("large_44k"))


def test_keys_of_a_bare_state_dict_become_pefts():
    network = mini()
    model = add_lora(network, LoRAConfig(2, target_modules=[QKV]))
    expected = {f"base_model.model.{QKV}.lora_{half}.weight" for half in "AB"}
    for source in (model, network):
        weights = lora_weights({key: value for key, value in source.state_dict().items() if "lora_" in key})
        assert weights.keys() == expected and adapted_modules(weights) == [QKV]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (f"{QKV}.lora_magnitude_vector", torch.ones(3), "holds no weights"),
        (f"{QKV}.lora_B.bias", torch.ones(3), "lora_B.bias: an adapter of LoRA's A and B matrices is expected"),
        ("final_layer.conv.weight", torch.ones(3), "holds final_layer.conv.weight"),
        (f"{QKV}.lora_A.weight", torch.tensor([float("nan")]), "not finite"),
        (f"{QKV}.lora_A.weight", torch.ones(2, 2), r"has no .*lora_B\.weight"),
    ],
)
def test_keys_other_than_lora_are_named(key, value, words):
    with pytest.raises(WeightsError, match=words):
        lora_weights({key: value})
    with pytest.raises(WeightsError, match="no weights"):
        lora_weights({})


def settings(**changes):
    return LoraConfig(r=4, lora_alpha=6, target_modules=["qkv"], **changes).to_dict()


def test_pefts_settings_become_ours():
    peft_settings = settings(lora_dropout=0.2, use_rslora=True, rank_pattern={"qkv": 2, ".*ffn.*": 3}, bias="lora_only")
    expected = LoRAConfig(4, 6.0, 0.2, [QKV], use_rslora=True, rank_pattern={QKV: 2}, bias="lora_only")
    assert lora_settings(peft_settings, [QKV]) == expected
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
        (settings() | {"lora_alpha": "much"}, "is invalid"),
    ],
)
def test_unsupported_settings_are_named(config, words):
    with pytest.raises(WeightsError, match=words):
        lora_settings(config, [QKV])


HALVES = {"A": (4, 64), "B": (192, 4)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 100_000}, f"the matrices of {QKV} have rank 4, the settings say 100000"),
        ({"rank_pattern": {"qkv": 2}}, f"the matrices of {QKV} have rank 4, the settings say 2"),
        ({"r": 4.0}, r"lora\.rank=4\.0: an integer is expected"),
        ({"r": "4"}, r"lora\.rank='4': an integer is expected"),
        ({"r": True}, r"lora\.rank=True: an integer is expected"),
        ({"r": [4]}, r"lora\.rank=\[4\]: an integer is expected"),
        ({"rank_pattern": {"qkv": 2.5}}, r"lora\.rank_pattern: .*qkv=2\.5: an integer is expected"),
        ({"rank_pattern": ["qkv"]}, "is invalid"),
        ({"lora_alpha": 1e300}, r"lora\.alpha=1e\+300: the scale is a positive number"),
        ({"lora_alpha": 1e-300}, r"lora\.alpha=1e-300: the scale is a positive number"),
        ({"lora_alpha": float("nan")}, r"lora\.alpha=nan: the scale is a positive number"),
        ({"lora_alpha": 10**400}, r"lora\.alpha=10+: the scale is a positive number"),
        ({"lora_alpha": True}, r"lora\.alpha=True: a number is expected"),
        ({"alpha_pattern": {"qkv": 1e300}}, "the scale is a positive number"),
        ({"lora_dropout": "0.1"}, r"lora\.dropout='0\.1': a number is expected"),
        ({"use_rslora": "false"}, r"lora\.use_rslora='false': true or false is expected"),
    ],
)
def test_settings_that_do_not_fit_the_matrices_are_refused(change, words):
    state = {f"base_model.model.{QKV}.lora_{half}.weight": torch.ones(shape) for half, shape in HALVES.items()}
    check_ranks(lora_settings(settings(), [QKV]), state)
    with pytest.raises(WeightsError, match=words):
        check_ranks(lora_settings(settings() | change, [QKV]), state)


@pytest.mark.parametrize("shapes", [{"A": (4,)}, {"A": ()}, {"B": (192, 5)}, {"B": (192, 4, 1)}], ids=str)
def test_matrices_that_do_not_multiply_are_refused(shapes):
    shapes = HALVES | shapes
    state = {f"base_model.model.{QKV}.lora_{half}.weight": torch.ones(shape) for half, shape in shapes.items()}
    with pytest.raises(WeightsError, match=f"the matrices of {QKV} are .* no A"):
        check_ranks(LoRAConfig(4), state)


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(4, 64, dtype=torch.int8),
        torch.ones(4, 64, dtype=torch.bool),
        torch.ones(4, 64, dtype=torch.complex64),
        torch.ones(4, 64).to(torch.float8_e4m3fn),
        torch.ones(4, 64).to_sparse(),
        torch.ones(1).expand(1 << 30, 1 << 30),
        "text",
    ],
    ids=["int8", "bool", "complex", "float8", "sparse", "expanded", "text"],
)
def test_values_other_than_floating_point_numbers_are_refused(value):
    state = {f"base_model.model.{QKV}.lora_{half}.weight": torch.ones(shape) for half, shape in HALVES.items()}
    with pytest.raises(WeightsError, match=r"lora_A\.weight is .* float32, float16, bfloat16 are read"):
        lora_weights(state | {f"base_model.model.{QKV}.lora_A.weight": value})
