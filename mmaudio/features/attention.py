"""torch's multi-head attention, its tokens left in place.

`nn.MultiheadAttention` turns (B, L, D) into (L, B, D) before its products, and a frozen linear of such a tensor is
computed token by token, each time with a copy of the weights: CLIP at full size took minutes a frame in bfloat16.

Legend: B batch, L tokens that ask, M tokens that are asked, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmaudio.errors import ConfigError


class BatchFirstAttention(nn.MultiheadAttention):
    """The same function with the same keys for (B, L, D), one product for all tokens; it gives no attention weights."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """(B, L, D) and twice (B, M, D) -> (B, L, D); `attn_mask` (L, M) is added to the scores."""
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        if query is key is value:
            parts = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            inputs = (query, key, value)
            parts = tuple(F.linear(x.contiguous(), w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        q, k, v = (rearrange(part, "b l (h d) -> b h l d", h=self.num_heads) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, None if attn_mask is None else attn_mask.to(q.dtype))
        return self.out_proj(rearrange(attended, "b h l d -> b l (h d)")), None


def keep_tokens_in_place(module: nn.Module) -> None:
    """Let every `nn.MultiheadAttention` in `module` compute like `BatchFirstAttention`, with the weights it has.

    Raises ConfigError for one that is not batch first, or that projects keys of another width.
    """
    for name, part in module.named_modules():
        if type(part) is nn.MultiheadAttention:
            if not part.batch_first or part.in_proj_weight is None or part.in_proj_bias is None or part.dropout:
                raise ConfigError(f"{name}: an attention of another kind than CLIP's")
            part.__class__ = BatchFirstAttention
