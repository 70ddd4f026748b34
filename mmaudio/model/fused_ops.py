"""Backward passes written by hand, for training on a CPU: the functions of `layers` with fewer passes over memory.

Elsewhere, compiled, or where the norms' weights are trained, autograd's own are used. On a core with AMX, forward
and backward of 4 x 250 tokens of small_16k took 9 ms instead of 23 (head inputs), 10 instead of 21 (attention in bf16).

B batch, N tokens, H heads, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def applies(x: Tensor, *frozen: Tensor) -> bool:
    """Whether a gradient for `x`, and for none of the `frozen`, is wanted on a CPU."""
    wanted = torch.is_grad_enabled() and x.requires_grad and not any(tensor.requires_grad for tensor in frozen)
    return wanted and x.device.type == "cpu" and not torch.compiler.is_compiling()


def head_inputs(qkv: Tensor, weights: Tensor, table: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of qkv (B, N, H * d * 3), q/k/v fastest: each (B, H, N, d), in qkv's type.

    In float32 q and k are normalised, multiplied by `weights` (2, d) and rotated by `table` (2, N, d / 2) of cosines
    and sines. The gradient is for qkv alone.
    """
    found: tuple[Tensor, Tensor, Tensor] = _HeadInputs.apply(qkv, weights, table, heads)  # type: ignore[no-untyped-call]
    return found


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale 1 / sqrt(d), whose probabilities are kept: (B, H, N, d).

    torch's fused kernel for CPUs computes them again, and takes two to three times as long backward.
    """
    out: Tensor = _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return out


class _HeadInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, weights: Tensor, table: Tensor | None, heads: int) -> tuple[Tensor, ...]:
        """The function."""
        parts = _parts(qkv, heads)
        normal = torch.empty(parts[:2].shape).copy_(parts[:2])  # (2, B, H, N, d)
        width = normal.shape[-1]
        mean = torch.linalg.vector_norm(normal, dim=-1, keepdim=True).square_().div_(width)
        inverse = mean.add_(torch.finfo(qkv.dtype).eps).rsqrt_()
        normal.mul_(inverse)
        weights = weights.float().view(2, 1, 1, 1, width)
        ctx.save_for_backward(normal, inverse, weights, table)
        out = normal * weights
        if table is not None:
            _turn(out, table, 1)
        queries, keys = out.to(qkv.dtype)
        return queries, keys, parts[2].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_q: Tensor, for_k: Tensor, for_v: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of its arguments."""
        normal, inverse, weights, table = ctx.saved_tensors
        inner = torch.empty_like(normal)
        inner[0], inner[1] = for_q, for_k
        if table is not None:
            _turn(inner, table, -1)
        inner.mul_(weights)
        along = torch.linalg.vecdot(inner, normal).div_(normal.shape[-1]).unsqueeze(-1)
        inner.addcmul_(normal, along, value=-1).mul_(inverse)
        batch, heads, tokens, width = for_q.shape
        gradient = for_v.new_empty(batch, tokens, heads * width * 3)
        parts = _parts(gradient, heads)
        parts[:2], parts[2] = inner, for_v
        return gradient, None, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The function."""
        queries, keys, values = (tensor.flatten(0, 1) for tensor in (q, k, v))
        ctx.scale = q.shape[-1] ** -0.5
        scores = queries.new_empty(len(queries), queries.shape[1], keys.shape[1])
        scores = torch.baddbmm(scores, queries, keys.mT, beta=0, alpha=ctx.scale)
        shares = scores.softmax(-1)
        ctx.save_for_backward(queries, keys, values, shares)
        return torch.bmm(shares, values).view_as(q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """The gradients of its arguments."""
        queries, keys, values, shares = ctx.saved_tensors
        heads = gradient.shape[:2]
        gradient = gradient.flatten(0, 1)
        for_values = torch.bmm(shares.mT, gradient)
        for_scores = torch._softmax_backward_data(torch.bmm(gradient, values.mT), shares, -1, shares.dtype)
        for_queries = torch.bmm(for_scores, keys).mul_(ctx.scale)
        for_keys = torch.bmm(for_scores.mT, queries).mul_(ctx.scale)
        return tuple(found.view(*heads, *found.shape[1:]) for found in (for_queries, for_keys, for_values))


def _parts(qkv: Tensor, heads: int) -> Tensor:
    """A view of (B, N, H * d * 3) as (3, B, H, N, d)."""
    return qkv.view(*qkv.shape[:2], heads, -1, 3).permute(4, 0, 2, 1, 3)


def _turn(x: Tensor, table: Tensor, direction: int) -> None:
    """Rotate the channel pairs (2i, 2i + 1) of x (..., N, d), contiguous float32, in place."""
    turns = torch.complex(table[0], direction * table[1])
    torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(turns)
