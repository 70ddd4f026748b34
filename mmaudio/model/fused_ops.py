"""Fused operations with hand-written backward passes for a CPU, with fewer passes over memory.

`layers` uses autograd instead on other devices, in compiled code, or if norms or modulations are trained. Sampling,
which needs no gradient, takes the forward pass of the head inputs and an attention of its own. On a core with AMX,
forward and backward of 4 x 250 tokens of small_16k took 9 ms instead of 23 (head inputs), 10 instead of 21 (attention
in bf16).

B batch, N tokens, H heads, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LAYER_NORM_EPS = 1e-5
"""torch's default."""
LARGEST_SCORES = 4 << 20
"""Attention scores of one row, over all heads, up to which sampling stores them."""


def can_fuse(x: Tensor, *frozen: Tensor) -> bool:
    """Whether a gradient is needed for `x` alone, and not for `frozen`, on a CPU."""
    needs_gradient = torch.is_grad_enabled() and x.requires_grad and not any(tensor.requires_grad for tensor in frozen)
    return needs_gradient and _runs_on_cpu(x)


def is_sampling(x: Tensor) -> bool:
    """Whether no gradient is computed at all, on a CPU."""
    return not torch.is_grad_enabled() and _runs_on_cpu(x)


def can_store_scores(q: Tensor, k: Tensor) -> bool:
    """Whether, in sampling on a CPU, the scores of one row of queries and keys (B, H, any, d) take little memory."""
    return is_sampling(q) and q.shape[1] * q.shape[2] * k.shape[2] <= LARGEST_SCORES


def _runs_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def fused_head_inputs(
    qkv: Tensor, weights: Tensor, table: Tensor | None, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split qkv (B, N, H * d * 3), with q/k/v as the fastest axis, into q, k, v: each (B, H, N, d), in its dtype.

    q and k are normalised, multiplied by `weights` (2, d) and rotated by `table` (2, N, d / 2) of cosines and sines, in
    float32. Only qkv gets a gradient.
    """
    inputs: tuple[Tensor, Tensor, Tensor] = _HeadInputs.apply(qkv, weights, table, num_heads)  # type: ignore[no-untyped-call]
    return inputs


def cpu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale 1 / sqrt(d) that stores its probabilities: (B, H, N, d).

    torch's fused kernel for CPUs recomputes them, and takes two to three times as long in the backward pass.
    """
    out: Tensor = _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return out


def add_gated(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y, where no gradient of `gate` is needed; that of y takes one pass, autograd's of `addcmul` two."""
    out: Tensor = _AddGated.apply(x, gate, y)  # type: ignore[no-untyped-call]
    return out


def modulated_layer_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of x (B, N, D) without affine, times 1 + scale, plus shift; only x gets a gradient."""
    out: Tensor = _ModulatedNorm.apply(x, shift, 1 + scale)  # type: ignore[no-untyped-call]
    return out


def sampling_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale 1 / sqrt(d), the scores in float32: (B, H, N, d), in the dtype of v.

    torch's fused kernel for CPUs computes the same, and takes 1.3 times as long in bfloat16.
    """
    queries, keys, values = (tensor.flatten(0, 1) for tensor in (q, k, v))
    scores = torch.empty(len(queries), queries.shape[1], keys.shape[1])
    scores = torch.baddbmm(scores, queries.float(), keys.float().mT, beta=0, alpha=q.shape[-1] ** -0.5)
    probabilities = torch.softmax(scores, -1, out=scores).to(v.dtype)
    return torch.bmm(probabilities, values).view_as(q)


class _AddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        """Compute the sum."""
        ctx.save_for_backward(gate)
        return torch.addcmul(x, gate, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`."""
        (gate,) = ctx.saved_tensors
        return gradient, None, gradient * gate


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
        """Compute the norm."""
        normal, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, LAYER_NORM_EPS)
        ctx.save_for_backward(x, factor, mean, inverse)
        return torch.addcmul(shift, normal, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`."""
        x, factor, mean, inverse = ctx.saved_tensors
        grad_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            gradient * factor, x, x.shape[-1:], mean, inverse, None, None, [True, False, False]
        )
        return grad_x, None, None


class _HeadInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, weights: Tensor, table: Tensor | None, num_heads: int) -> tuple[Tensor, ...]:
        """Compute q, k and v."""
        q_k_v = _split_qkv(qkv, num_heads)
        normal = torch.empty(q_k_v[:2].shape).copy_(q_k_v[:2])  # (2, B, H, N, d)
        width = normal.shape[-1]
        mean = torch.linalg.vector_norm(normal, dim=-1, keepdim=True).square_().div_(width)
        inverse = mean.add_(torch.finfo(qkv.dtype).eps).rsqrt_()
        normal.mul_(inverse)
        weights = weights.float().view(2, 1, 1, 1, width)
        ctx.save_for_backward(normal, inverse, weights, table)
        out = normal * weights
        if table is not None:
            _rotate(out, table, 1)
        queries, keys = out.to(qkv.dtype)
        return queries, keys, q_k_v[2].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`."""
        normal, inverse, weights, table = ctx.saved_tensors
        inner = torch.empty_like(normal)
        inner[0], inner[1] = grad_q, grad_k
        if table is not None:
            _rotate(inner, table, -1)
        inner.mul_(weights)
        projection = torch.linalg.vecdot(inner, normal).div_(normal.shape[-1]).unsqueeze(-1)
        inner.addcmul_(normal, projection, value=-1).mul_(inverse)
        gradient = torch.stack([*inner.to(grad_v.dtype), grad_v], dim=-1)  # (B, H, N, d, 3)
        return gradient.transpose(1, 2).flatten(2), None, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute the attention output."""
        queries, keys, values = (tensor.flatten(0, 1) for tensor in (q, k, v))
        ctx.scale = q.shape[-1] ** -0.5
        scores = queries.new_empty(len(queries), queries.shape[1], keys.shape[1])
        scores = torch.baddbmm(scores, queries, keys.mT, beta=0, alpha=ctx.scale)
        probabilities = scores.softmax(-1)
        ctx.save_for_backward(queries, keys, values, probabilities)
        return torch.bmm(probabilities, values).view_as(q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the arguments of `forward`."""
        queries, keys, values, probabilities = ctx.saved_tensors
        heads = gradient.shape[:2]
        gradient = gradient.flatten(0, 1)
        grad_values = torch.bmm(probabilities.mT, gradient)
        grad_probabilities = torch.bmm(gradient, values.mT)
        grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, probabilities.dtype)
        grad_queries = torch.bmm(grad_scores, keys).mul_(ctx.scale)
        grad_keys = torch.bmm(grad_scores.mT, queries).mul_(ctx.scale)
        return tuple(grad.view(*heads, *grad.shape[1:]) for grad in (grad_queries, grad_keys, grad_values))


def _split_qkv(qkv: Tensor, num_heads: int) -> Tensor:
    """View of (B, N, H * d * 3) as (3, B, H, N, d)."""
    return qkv.view(*qkv.shape[:2], num_heads, -1, 3).permute(4, 0, 2, 1, 3)


def _rotate(x: Tensor, table: Tensor, direction: int) -> None:
    """Rotate the channel pairs (2i, 2i + 1) of x (..., N, d), contiguous float32, in place."""
    rotations = torch.complex(table[0], direction * table[1])
    torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(rotations)
