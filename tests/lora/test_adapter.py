"""LoRA against the golden numbers, and its promises."""

import json

import pytest
import torch
from helpers import assert_close, filled, golden, manifest, mini, mini_inputs, mini_velocity
from mini_adapters import RANK_4, adapted_mini, seeded_generator
from omegaconf import OmegaConf
from peft import PeftModel

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora.adapter import (
    LoRAConfig,
    adapted_network,
    adapter_state,
    add_lora,
    expand_targets,
    load_adapter_state,
    merge,
    parameter_counts,
    set_strength,
)
from mmaudio.model.flow_matching import sample_posterior, velocity_loss
from mmaudio.model.networks import build_network


def training_loss(network):
    """Loss per sample on the golden training inputs: (2,)."""
    inputs = mini_inputs()
    mean, std, eps, noise = (filled(f"train/{name}", 2, 30, 8) for name in ("mean", "std", "eps", "x0"))
    latent = network.normalize(sample_posterior(mean, 0.1 * std.abs(), eps))
    conditions = network.preprocess_conditions(inputs["clip_f"], inputs["sync_f"], inputs["text_f"])
    return velocity_loss(network, latent, conditions, filled("train/t", 2).sigmoid(), noise)


@pytest.mark.slow
def test_flows_match_the_golden_numbers():
    expected = golden("lora_mini_v1")
    network, model = adapted_mini()
    assert_close(mini_velocity(network), expected["flow.adapter_on"])
    with model.disable_adapter():
        assert_close(mini_velocity(network), expected["flow.adapter_off"])
    assert_close(mini_velocity(merge(model)), expected["flow.merged"])


def test_loss_and_gradients_match_the_golden_numbers():
    expected = golden("lora_mini_v1")
    network, model = adapted_mini()
    losses = training_loss(network)
    assert_close(losses, expected["train.loss"])
    losses.mean().backward()
    gradients = {name.replace(".default", ""): value.grad for name, value in model.named_parameters()}
    expected_gradients = {
        key.removeprefix("grad."): value for key, value in expected.items() if key.startswith("grad.")
    }
    assert len(expected_gradients) == 4
    for key, value in expected_gradients.items():
        assert_close(gradients[key], value)


def test_keys_and_shapes_are_those_of_peft():
    _, model = adapted_mini(filled_adapter=False)
    shapes = {key: list(value.shape) for key, value in adapter_state(model).items()}
    assert shapes == manifest("lora_mini_v1_rank4")


@pytest.mark.slow
def test_a_fresh_adapter_changes_nothing():
    network, _ = adapted_mini(filled_adapter=False)
    assert torch.equal(mini_velocity(network), mini_velocity(mini()))


@pytest.mark.slow
def test_a_step_moves_the_adapter_and_leaves_the_base_untouched():
    network, model = adapted_mini(filled_adapter=False, dropout=0.1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.train()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(2):  # A's gradient is zero while B is
        optimizer.zero_grad()
        training_loss(network).mean().backward()
        optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}


@pytest.mark.slow
def test_merged_equals_unmerged_with_the_released_keys():
    network, model = adapted_mini()
    expected = mini_velocity(network)
    merged = merge(model)
    assert merged is network
    assert_close(mini_velocity(merged), expected, tolerance=1e-5)
    plain = mini()
    plain.load_released(merged.state_dict())
    assert torch.equal(mini_velocity(plain), mini_velocity(merged))


def test_merging_a_bf16_base_happens_in_float32():
    network, model = adapted_mini()
    network.to(torch.bfloat16)
    state = {name: value.float() for name, value in model.named_parameters()}
    name = "fused_blocks.0.attn.qkv"
    a, b = (state[f"base_model.model.{name}.lora_{half}.default.weight"] for half in "AB")
    expected = state[f"base_model.model.{name}.base_layer.weight"] + 2 * b @ a
    weight = merge(model).get_submodule(name).weight
    assert weight.dtype == torch.float32
    assert_close(weight, expected, tolerance=1e-6)


@pytest.mark.slow
def test_strength_scales_the_adapter_and_survives_merging():
    network, model = adapted_mini()
    full, base = mini_velocity(network), mini_velocity(mini())
    set_strength(model, 0.0)
    assert torch.equal(mini_velocity(network), base)
    set_strength(model, 1.0)
    assert torch.equal(mini_velocity(network), full)
    set_strength(model, 0.5)
    half = mini_velocity(network)
    assert not torch.allclose(half, full) and not torch.allclose(half, base)
    assert_close(mini_velocity(merge(model)), half, tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [-0.1, 1.6, float("nan")])
def test_strength_outside_its_range_is_refused(strength):
    network, model = adapted_mini()
    before = mini_velocity(network)
    with pytest.raises(ConfigError, match=r"strength=.*from 0, the base model, to 1\.5"):
        set_strength(model, strength)
    assert torch.equal(mini_velocity(network), before)
    set_strength(model, 1.5)
    assert not torch.allclose(mini_velocity(network), before)


@pytest.mark.slow
def test_save_and_load_are_the_identity():
    _, model = adapted_mini(filled_adapter=False)
    source, _ = adapted_mini()
    _, first = adapted_mini()
    load_adapter_state(model, adapter_state(first))
    assert torch.equal(mini_velocity(adapted_network(model)), mini_velocity(source))
    saved = adapter_state(model)
    with torch.no_grad():
        next(value for value in model.parameters() if value.requires_grad).add_(1)
    assert all(torch.equal(value, adapter_state(first)[key]) for key, value in saved.items())


@pytest.mark.slow
def test_peft_itself_loads_what_we_save(tmp_path):
    network, model = adapted_mini()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(mini(), tmp_path)
    assert torch.equal(mini_velocity(loaded.get_base_model()), mini_velocity(network))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["peft_type"]) == (4, 8.0, "LORA")


@pytest.mark.slow
def test_a_fresh_adapter_depends_on_the_generator_alone():
    def fresh(seed):
        torch.manual_seed(next(defaults))
        return adapter_state(add_lora(mini(), LoRAConfig(**RANK_4), seeded_generator(seed)))

    defaults = iter(range(3))
    with torch.random.fork_rng(devices=[]):
        first, second, other = fresh(1), fresh(1), fresh(2)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    a_matrices = [key for key in first if "lora_A" in key]
    assert not any(torch.equal(first[key], other[key]) for key in a_matrices)
    bound = 1 / first[a_matrices[0]].shape[1] ** 0.5  # Kaiming uniform with a = sqrt(5): 1 / sqrt(fan in)
    assert 0.9 * bound < first[a_matrices[0]].abs().max() <= bound


@pytest.mark.slow
def test_wrong_adapter_weights_name_the_keys():
    _, model = adapted_mini()
    state = adapter_state(model)
    key = next(iter(state))
    with pytest.raises(WeightsError, match=f"adapter weights.*1 missing \\({key}\\)"):
        load_adapter_state(model, {name: value for name, value in state.items() if name != key})
    with pytest.raises(WeightsError, match="of another shape"):
        load_adapter_state(model, adapter_state(adapted_mini(filled_adapter=False, rank=8)[1]))


@pytest.mark.slow
def test_gradients_flow_under_bf16_autocast_and_checkpointing():
    network, model = adapted_mini()
    network.gradient_checkpointing = True
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = training_loss(network)
    losses.mean().backward()
    assert losses.dtype == torch.float32
    assert_close(losses, golden("lora_mini_v1")["train.loss"], tolerance=5e-2)
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "modules", "millions"),
    [("small_16k", 74, 12.44), ("medium_44k", 74, 24.89), ("large_44k_v2", 134, 44.97)],
)
def test_default_targets_of_the_released_variants(name, modules, millions):
    with torch.device("meta"):
        network = build_network(name)
        assert len(expand_targets(network, LoRAConfig().target_modules)) == modules
        counts = parameter_counts(add_lora(network, LoRAConfig()))
    assert counts.trainable / 1e6 == pytest.approx(millions, abs=0.005)
    assert counts.total > counts.trainable == sum(counts.blocks.values())
    spec = network.spec
    assert len(counts.blocks) == spec.num_joint_blocks + spec.num_fused_blocks


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("fused_blocks.*.attn.qkv", ["fused_blocks.0.attn.qkv", "fused_blocks.1.attn.qkv"]),
        ("fused_blocks[*].attn.qkv", ["fused_blocks.0.attn.qkv", "fused_blocks.1.attn.qkv"]),
        ("fused_blocks[1].ffn", [f"fused_blocks.1.ffn.w{i}" for i in (1, 2, 3)]),
        ("fused_blocks.[01].ffn.w[12]", [f"fused_blocks.{b}.ffn.w{i}" for b in (0, 1) for i in (1, 2)]),
        ("text_block.ffn", [f"joint_blocks.0.text_block.ffn.w{i}" for i in (1, 2, 3)]),
        ("joint_blocks.*.text_block.*.w3", ["joint_blocks.0.text_block.ffn.w3"]),
        ("final_layer", ["final_layer.adaLN_modulation.1", "final_layer.conv"]),
        ("clip_cond_proj", ["clip_cond_proj"]),
        ("*_cond_proj", ["clip_cond_proj", "text_cond_proj"]),
        ("[!c]???_cond_proj", ["text_cond_proj"]),
    ],
)
def test_the_grammar_of_targets(pattern, expected):
    assert sorted(expand_targets(mini(), [pattern])) == expected


def test_a_star_is_one_component_and_overlaps_count_once():
    network = mini()
    assert expand_targets(network, ["fused_blocks[*].ffn", "fused_blocks.*.ffn.w1"]) == [
        f"fused_blocks.{block}.ffn.w{i}" for block in (0, 1) for i in (1, 2, 3)
    ]
    for pattern in ("fused_blocks.*.qkv", "fused_blocks[*", "usedblocks.0.ffn", "used_blocks.0.ffn", "[]"):
        with pytest.raises(ConfigError, match="matches nothing"):
            expand_targets(network, [pattern])


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("joint_blocks[*].latent_block.atn.qkv", r"joint_blocks\[\*\].latent_block.attn.qkv"),
        ("fused_blocks.*.fnn", "ffn"),
    ],
)
def test_a_target_that_matches_nothing_names_the_nearest(pattern, nearest):
    with pytest.raises(ConfigError, match=f"matches nothing.*{nearest}"):
        add_lora(mini(), LoRAConfig(target_modules=["fused_blocks[*].attn.qkv", pattern]))
    with pytest.raises(ConfigError, match=f"^lora.extra_targets: .*matches nothing in the network.*{nearest}"):
        add_lora(mini(), LoRAConfig(extra_targets=[pattern]))


def test_a_target_without_weights_to_adapt_is_an_error():
    with pytest.raises(ConfigError, match="no linear or convolution"):
        expand_targets(mini(), ["attn.q_norm"])
    with pytest.raises(ConfigError, match="not a valid pattern"):
        expand_targets(mini(), ["fused_blocks[z-a].ffn"])


def test_a_second_adapter_is_refused():
    network, _ = adapted_mini()
    with pytest.raises(ConfigError, match="already"):
        add_lora(network, LoRAConfig(**RANK_4))


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"target_modules": []},
        {"max_steps": 0},
    ],
)
def test_invalid_settings_are_errors(settings):
    with pytest.raises(ConfigError, match=f"lora.{next(iter(settings))}"):
        LoRAConfig(**settings)


def test_the_settings_are_a_schema():
    schema = OmegaConf.structured(LoRAConfig)
    config = OmegaConf.to_object(OmegaConf.merge(schema, {"rank": 32, "target_modules": ["ffn"], "max_steps": 5}))
    assert config == LoRAConfig(rank=32, target_modules=["ffn"], max_steps=5)
