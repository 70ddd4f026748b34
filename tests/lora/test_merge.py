"""Merging for deployment: the base's keys and types, the same velocity, and a refusal where it is not the same."""

import pytest
import torch
from helpers import mini, mini_velocity
from mini_adapters import adapted_mini

from mmaudio.errors import WeightsError
from mmaudio.lora.adapter import set_strength
from mmaudio.lora.merge import TOLERANCES, merge_copy, velocity_at_random_input


def all_of(dtype):
    return dict.fromkeys(mini().state_dict(), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_merged_copy_has_the_keys_and_types_of_the_base_and_computes_the_same(dtype):
    network, model = adapted_mini()
    before = mini_velocity(network)
    merged = merge_copy(model, all_of(dtype))
    assert list(merged.state_dict) == list(mini().state_dict())
    assert {value.dtype for value in merged.state_dict.values()} == {dtype} and merged.dtype == dtype
    assert 0 <= merged.max_difference < TOLERANCES[dtype] / 3
    assert torch.equal(mini_velocity(network), before), "the adapted model has changed"
    again = mini()
    again.load_released(merged.state_dict)
    assert torch.equal(mini_velocity(again), mini_velocity(merged.network)), (
        "the network in memory is not that of the file"
    )
    assert not any(weight.requires_grad for weight in merged.network.parameters())


@pytest.mark.slow
def test_the_rounding_error_of_merging_is_measured():
    network, model = adapted_mini()
    expected = velocity_at_random_input(network)
    merged = merge_copy(model, all_of(torch.float16))
    got = velocity_at_random_input(merged.network)
    assert merged.max_difference == pytest.approx(float((got - expected).abs().max() / expected.abs().max()), rel=1e-3)
    assert merged.max_difference > 1e-5, "rounding to float16 shows"


@pytest.mark.slow
def test_dtypes_are_preserved_by_key_and_the_sum_is_rounded_once():
    _, model = adapted_mini()
    name = "fused_blocks.0.attn.qkv.weight"
    merged = merge_copy(model, all_of(torch.float32) | {name: torch.bfloat16})
    full = merge_copy(model, all_of(torch.float32))
    kinds = {key for key, value in merged.state_dict.items() if value.dtype == torch.bfloat16}
    assert kinds == {name} and merged.dtype == torch.bfloat16
    assert torch.equal(merged.state_dict[name], full.state_dict[name].bfloat16())


@pytest.mark.slow
def test_merging_uses_the_current_strength():
    network, model = adapted_mini()
    set_strength(model, 0.5)
    half = velocity_at_random_input(network)
    merged = merge_copy(model, all_of(torch.float32))
    assert torch.allclose(velocity_at_random_input(merged.network), half, atol=1e-4 * float(half.abs().max()))
    set_strength(model, 0.0)
    assert merge_copy(model, all_of(torch.float32)).max_difference == 0


@pytest.mark.slow
def test_excessive_rounding_is_refused():
    _, model = adapted_mini()
    with pytest.raises(WeightsError, match=r"float8_e5m2, the velocity differs by .*nothing is written"):
        merge_copy(model, all_of(torch.float8_e5m2))
    with torch.no_grad():
        model.get_submodule("base_model.model.fused_blocks.0.attn.qkv.lora_B.default").weight.mul_(1e7)
    with pytest.raises(WeightsError, match="float16, the velocity differs by nan"):
        merge_copy(model, all_of(torch.float16))  # beyond its 65 504
    with torch.no_grad():
        model.get_submodule("base_model.model.fused_blocks.0.attn.qkv.lora_B.default").weight.fill_(torch.nan)
    with pytest.raises(WeightsError, match="not finite"):
        merge_copy(model, all_of(torch.float32))
