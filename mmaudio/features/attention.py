"""Multi-head attention in batch-first layout, one matrix product for all tokens.

`nn.MultiheadAttention` transposes (B, L, D) to (L, B, D) before its products, and a frozen linear of such a tensor is
computed token by token, each time with a copy of the weights: CLIP at full size took minutes per frame in bfloat16.

Legend: B batch, L query tokens, M key tokens, H heads, d width of a head, D = H d width.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmaudio.errors import ConfigError


def multi_head_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of queries (B, L, D) over keys and values (B, M, D) -> (B, L, D).

    `mask` (L, M) is added to the scores.
    """
    q, k, v = (rearrange(x, "b l (h d) -> b h l d", h=num_heads) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(q.dtype))  # (B, H, L, d)
    return rearrange(out, "b h l d -> b l (h d)")


class BatchFirstAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` for (B, L, D): the same function and keys; it returns no attention weights."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,  # (B, L, D)
        key: Tensor,  # (B, M, D)
        value: Tensor,  # (B, M, D)
        need_weights: bool = False,
        attn_mask: Tensor | None = None,  # (L, M)
    ) -> tuple[Tensor, None]:
        """Attention -> (B, L, D), None; `attn_mask` is added to the scores."""
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        if query is key is value:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            inputs = (query, key, value)
            q, k, v = (F.linear(x.contiguous(), w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        return self.out_proj(multi_head_attention(q, k, v, self.num_heads, attn_mask)), None


def use_batch_first_attention(module: nn.Module) -> None:
    """Turn every `nn.MultiheadAttention` in `module` into a `BatchFirstAttention` with the same weights, in place.

    Raises ConfigError for one that is not batch first, has dropout or projects keys of another width.
    """
    for name, submodule in module.named_modules():
        if type(submodule) is nn.MultiheadAttention:
            has_weights = submodule.in_proj_weight is not None and submodule.in_proj_bias is not None
            if not submodule.batch_first or not has_weights or submodule.dropout:
                raise ConfigError(f"{name}: an attention of another kind than CLIP's")
            submodule.__class__ = BatchFirstAttention
