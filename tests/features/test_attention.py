"""Attention with its tokens in place is torch's own."""

import pytest
import torch
from conftest import assert_close
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmaudio.errors import ConfigError
from mmaudio.features.attention import BatchFirstAttention, keep_tokens_in_place


def both():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    torch.nn.init.normal_(theirs.in_proj_bias)
    ours = BatchFirstAttention(24, 3, batch_first=True).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("masked", [False, True])
def test_self_attention(masked):
    theirs, ours = both()
    x = torch.randn(2, 5, 24)
    mask = torch.full((5, 5), -torch.inf).triu(1) if masked else None
    assert_close(ours(x, x, x, attn_mask=mask)[0], theirs(x, x, x, need_weights=False, attn_mask=mask)[0])


def test_other_tokens_are_asked_and_gradients_agree():
    theirs, ours = both()
    query, asked = torch.randn(2, 1, 24), torch.randn(2, 7, 24)
    results = [module(query, asked, asked, need_weights=False)[0] for module in (theirs, ours)]
    assert_close(results[1], results[0])
    for result in results:
        result.square().sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(own.grad, other.grad)


def test_a_frozen_one_makes_one_product_of_all_tokens():
    """What torch's own does with frozen weights is a product per token."""
    theirs, ours = both()
    counts = []
    for module in (theirs, ours):
        module.requires_grad_(False)
        x = torch.randn(2, 50, 24)
        with torch.profiler.profile() as found, sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cpu"):
            module(x, x, x, need_weights=False)
        counts.append(sum(event.count for event in found.key_averages() if event.key == "aten::bmm"))
    assert counts[1] == 0 < counts[0]


def test_others_are_refused():
    for other in (nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True, kdim=4)):
        with pytest.raises(ConfigError, match="another kind"):
            keep_tokens_in_place(nn.ModuleDict({"attn": other}))
