"""Merging for deployment: the base's keys and types, the same velocity, and a refusal where it is not the same."""

import pytest
import torch
from test_adapter import adapted, flow
from test_networks import mini

from mmaudio.errors import WeightsError
from mmaudio.lora.adapter import set_strength
from mmaudio.lora.merge import TOLERANCES, merged_copy, velocity_at_random


def all_of(dtype):
    return dict.fromkeys(mini().state_dict(), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_merged_copy_has_the_keys_and_types_of_the_base_and_computes_the_same(dtype):
    network, model = adapted()
    before = flow(network)
    merged = merged_copy(model, all_of(dtype))
    assert list(merged.state) == list(mini().state_dict())
    assert {value.dtype for value in merged.state.values()} == {dtype} and merged.dtype == dtype
    assert 0 <= merged.difference < TOLERANCES[dtype] / 3
    assert torch.equal(flow(network), before), "the adapted model has changed"
    again = mini()
    again.load_released(merged.state)
    assert torch.equal(flow(again), flow(merged.network)), "the network in memory is not that of the file"
    assert not any(weight.requires_grad for weight in merged.network.parameters())


def test_the_difference_is_measured():
    network, model = adapted()
    expected = velocity_at_random(network)
    merged = merged_copy(model, all_of(torch.float16))
    got = velocity_at_random(merged.network)
    assert merged.difference == pytest.approx(float((got - expected).abs().max() / expected.abs().max()), rel=1e-3)
    assert merged.difference > 1e-5, "rounding to float16 shows"


def test_types_are_kept_key_by_key_and_the_sum_is_rounded_once():
    _, model = adapted()
    name = "fused_blocks.0.attn.qkv.weight"
    merged = merged_copy(model, all_of(torch.float32) | {name: torch.bfloat16})
    full = merged_copy(model, all_of(torch.float32))
    kinds = {key for key, value in merged.state.items() if value.dtype == torch.bfloat16}
    assert kinds == {name} and merged.dtype == torch.bfloat16
    assert torch.equal(merged.state[name], full.state[name].bfloat16())


def test_the_strength_that_is_set_is_merged():
    network, model = adapted()
    set_strength(model, 0.5)
    half = velocity_at_random(network)
    merged = merged_copy(model, all_of(torch.float32))
    assert torch.allclose(velocity_at_random(merged.network), half, atol=1e-4 * float(half.abs().max()))
    set_strength(model, 0.0)
    assert merged_copy(model, all_of(torch.float32)).difference == 0


def test_what_is_rounded_too_much_is_refused():
    _, model = adapted()
    with pytest.raises(WeightsError, match=r"float8_e5m2, the velocity differs by .*nothing is written"):
        merged_copy(model, all_of(torch.float8_e5m2))
    with torch.no_grad():
        model.get_submodule("base_model.model.fused_blocks.0.attn.qkv.lora_B.default").weight.mul_(1e7)
    with pytest.raises(WeightsError, match="float16, the velocity differs by nan"):
        merged_copy(model, all_of(torch.float16))  # beyond its 65 504
    with torch.no_grad():
        model.get_submodule("base_model.model.fused_blocks.0.attn.qkv.lora_B.default").weight.fill_(torch.nan)
    with pytest.raises(WeightsError, match="not finite"):
        merged_copy(model, all_of(torch.float32))
