"""Attention with its tokens in place is torch's own."""

import pytest
import torch
from helpers import assert_close
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmaudio.errors import ConfigError
from mmaudio.features.attention import BatchFirstAttention, use_batch_first_attention


def build_pair():
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    torch.nn.init.normal_(reference.in_proj_bias)
    attention = BatchFirstAttention(24, 3, batch_first=True).eval()
    attention.load_state_dict(reference.state_dict())
    return reference, attention


@pytest.mark.parametrize("masked", [False, True])
def test_self_attention(masked):
    reference, attention = build_pair()
    x = torch.randn(2, 5, 24)
    mask = torch.full((5, 5), -torch.inf).triu(1) if masked else None
    assert_close(attention(x, x, x, attn_mask=mask)[0], reference(x, x, x, need_weights=False, attn_mask=mask)[0])


def test_cross_attention_and_its_gradients():
    reference, attention = build_pair()
    query, key = torch.randn(2, 1, 24), torch.randn(2, 7, 24)
    results = [module(query, key, key, need_weights=False)[0] for module in (reference, attention)]
    assert_close(results[1], results[0])
    for result in results:
        result.square().sum().backward()
    for parameter, expected in zip(attention.parameters(), reference.parameters(), strict=True):
        assert_close(parameter.grad, expected.grad)


def test_frozen_attention_is_one_product_of_all_tokens():
    """With frozen weights, torch computes one product per token."""
    reference, attention = build_pair()
    counts = []
    for module in (reference, attention):
        module.requires_grad_(False)
        x = torch.randn(2, 50, 24)
        with torch.profiler.profile() as profile, sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cpu"):
            module(x, x, x, need_weights=False)
        counts.append(sum(event.count for event in profile.key_averages() if event.key == "aten::bmm"))
    assert counts[1] == 0 < counts[0]


def test_attention_of_another_kind_is_refused():
    for other in (nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True, kdim=4)):
        with pytest.raises(ConfigError, match="another kind"):
            use_batch_first_attention(nn.ModuleDict({"attn": other}))
