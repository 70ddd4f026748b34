"""peft's LoRA layers with a fused forward and backward pass: what peft computes, in fewer passes over the activations.

peft casts the branch's input to float32, applies dropout, casts back, scales and adds, each with one pass forward and
two backward. Here `addmm_` adds the low-rank product into the base output, the scale is folded into B, dropout masks
come from random bits, and the backward pass adds the low-rank gradient into that of a frozen base layer. It keeps only
the dropped input, the mask and the low-rank activations. Layers of the same input, as an MLP's first two, share its
mask, and their A are one product. Anything but plain LoRA in training (DoRA, several adapters, merged, compiled) runs
peft's own code.

B batch, N tokens, r rank, R the sum of the ranks of layers that are computed together, k kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmaudio.model.layers import Conv1d, conv_input_gradient, tap_major, token_windows

MASK_LEVELS = 1 << 8
"""Each mask element uses 8 random bits; each row has one of two thresholds, whose mean is the dropout rate."""


@dataclass(frozen=True)
class LowRankBranch:
    """A layer's base output, and the low-rank product that is added to it."""

    base: Tensor
    """(B, N, out), overwritten."""
    a: Tensor
    """(r, in) or (r, in, k)."""
    b: Tensor
    """(out, r) or (out, r, 1)."""
    scale: float
    weight: Tensor | None = None
    """Of a frozen base layer, (out, in) or (out, in, k): `base` is without a gradient, and that of x includes its."""


class _FusedLoRA:
    """Forward pass shared by the linear and convolution layers."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Base output plus LoRA output: (B, N, in) -> (B, N, out)."""
        dropout = None if args or kwargs else self._fused_dropout()
        if dropout is None:
            out: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return out
        return add_low_rank(x, dropout, self._branch(x))[0]

    def forward_both(self, other: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of this layer and of `other` for the same x (B, N, in), with one dropout mask if both fuse."""
        layer: Any = self
        dropout = self._fused_dropout()
        if dropout is None or not isinstance(other, type(self)) or dropout != other._fused_dropout():
            return layer(x), other(x)
        first, second = add_low_rank(x, dropout, self._branch(x), other._branch(x))
        return first, second

    def _fused_dropout(self) -> float | None:
        """The dropout rate of the fused pass; None where peft's own code runs."""
        layer: Any = self
        names = layer.active_adapters
        plain = not (layer.disable_adapters or layer.merged or layer.lora_variant) and len(names) == 1
        if not plain or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        drop = layer.lora_dropout[names[0]]
        return drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0

    def _branch(self, x: Tensor) -> LowRankBranch:
        layer: Any = self
        (name,), base = layer.active_adapters, layer.base_layer
        is_frozen = not any(parameter.requires_grad for parameter in base.parameters())
        weights = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        if is_frozen:
            return LowRankBranch(base(x.detach()), *weights, base.weight)
        return LowRankBranch(base(x), *weights)


class FusedLoRALinear(_FusedLoRA, lora.Linear):  # type: ignore[misc]
    """peft's LoRA linear with the fused pass."""


class FusedLoRAConv1d(_FusedLoRA, lora.Conv1d):  # type: ignore[misc]
    """peft's LoRA convolution with the fused pass, for the network's convolutions along the tokens."""


LORA_LAYERS: dict[type[nn.Module], type[nn.Module]] = {Conv1d: FusedLoRAConv1d, nn.Linear: FusedLoRALinear}
"""LoRA layer by base layer; another adaptable layer type is one more entry."""


def add_low_rank(x: Tensor, dropout: float, *branches: LowRankBranch) -> tuple[Tensor, ...]:
    """base + scale * B A dropout(x) of every branch, in the dtype of its `base` (B, N, out).

    x (B, N, in) is that of all branches, and so is its dropout mask.
    """
    scales = tuple(branch.scale for branch in branches)
    tensors = (getattr(branch, name) for name in ("base", "a", "b", "weight") for branch in branches)
    outputs: tuple[Tensor, ...] = _LowRank.apply(x, dropout, scales, *tensors)  # type: ignore[no-untyped-call]
    return outputs


def dropout_mask(x: Tensor, dropout: float) -> Tensor:
    """Mask of zeros with probability `dropout`, else ones, like x (..., C); from torch's generator of the device.

    On a CPU that generator seeds numpy's SFC64, which takes a third of its time.
    """
    threshold = int(dropout * MASK_LEVELS)
    if x.device.type != "cpu" or threshold == MASK_LEVELS - 1:
        return torch.empty_like(x).bernoulli_(1 - dropout)
    words = np.random.SFC64(int(torch.randint(2**63 - 1, ()))).random_raw(-(-x.numel() // 8))
    bits = torch.from_numpy(words.view(np.uint8))[: x.numel()].view(x.shape)
    is_higher = torch.rand(*x.shape[:-1], 1) < dropout * MASK_LEVELS - threshold
    mask = torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.ge(bits, is_higher.to(torch.uint8).add_(threshold), out=mask)


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float, scales: tuple[float, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs; `tensors` are first the branches' bases, then their a, their b, their weights."""
        bases, a, b, weights = _by_kind(tensors, len(scales))
        dtype = bases[0].dtype
        x = x.to(dtype)
        mask = dropout_mask(x, dropout) if dropout else None
        ctx.scales = tuple(scale / (1 - dropout) for scale in scales)
        with torch.autocast(x.device.type, enabled=False):
            dropped = x if mask is None else x * mask
            low = _project_down(dropped, _concatenate([matrix.to(dtype) for matrix in a], 0))  # (B * N, R)
            outputs = []
            for base, low_rows, matrix, scale in zip(bases, _split(low, a), b, ctx.scales, strict=True):
                out = base.detach().contiguous()  # an in-place change of base itself would copy in the backward pass
                out.view(-1, out.shape[-1]).addmm_(low_rows, _scale_b(matrix, scale, dtype).T)
                outputs.append(out)
        ctx.save_for_backward(dropped, mask, low, *a, *b, *weights)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`."""
        x, mask, low, *tensors = ctx.saved_tensors
        a, b, weights = _by_kind(tensors, len(gradients))
        dtype, kernel_size = x.dtype, a[0].shape[2] if a[0].ndim == 3 else 1
        rows = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        with torch.autocast(x.device.type, enabled=False):
            scaled = [_scale_b(matrix, scale, dtype) for matrix, scale in zip(b, ctx.scales, strict=True)]
            grad_low = _concatenate([gradient @ matrix for gradient, matrix in zip(rows, scaled, strict=True)], 1)
            windows = token_windows(grad_low.view(*x.shape[:-1], -1), kernel_size)  # (B * N, k * R)
            grad_taps = (windows.T @ x.reshape(-1, x.shape[-1])).view(kernel_size, grad_low.shape[1], -1)
            grad_x = None
            if ctx.needs_input_grad[0]:
                a_rows = _concatenate([matrix.to(dtype) for matrix in a], 0)
                grad_x = (windows @ _flip_taps(a_rows)).view_as(x)
                grad_x = _add_base_gradients(grad_x, mask, gradients, weights)
            grad_b = [
                (gradient.T @ low_rows).to(matrix.dtype).mul_(scale).view_as(matrix)
                for gradient, low_rows, matrix, scale in zip(rows, _split(low, a), b, ctx.scales, strict=True)
            ]
        grad_a = [
            taps.flip(0).permute(1, 2, 0).to(matrix.dtype).reshape(matrix.shape)
            for taps, matrix in zip(_split(grad_taps, a), a, strict=True)
        ]
        return grad_x, None, None, *gradients, *grad_a, *grad_b, *[None for _ in weights]


def _by_kind(tensors: Sequence[Tensor], count: int) -> list[Sequence[Tensor]]:
    """`tensors` in groups of `count`, one of each branch."""
    return [tensors[i : i + count] for i in range(0, len(tensors), count)]


def _concatenate(tensors: list[Tensor], axis: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, axis)


def _split(low: Tensor, a: Sequence[Tensor]) -> Sequence[Tensor]:
    """The branches' parts of `low` (..., R, any) along the axis 1."""
    return torch.split(low, [len(matrix) for matrix in a], 1)


def _add_base_gradients(
    grad_x: Tensor, mask: Tensor | None, gradients: Sequence[Tensor], weights: Sequence[Tensor | None]
) -> Tensor:
    """The low-rank gradient of x (B, N, in), masked, plus those of the frozen base layers of these weights."""
    base: Tensor | None = None
    for gradient, weight in zip(gradients, weights, strict=True):
        if weight is not None:
            weight = weight.to(gradient.dtype)
            product = gradient @ weight if weight.ndim == 2 else conv_input_gradient(gradient, weight)
            base = product if base is None else base.add_(product)
    if base is None:
        return grad_x if mask is None else grad_x.mul_(mask)
    return base.add_(grad_x) if mask is None else base.addcmul_(grad_x, mask)


def _flip_taps(a: Tensor) -> Tensor:
    """A (R, in) or (R, in, k) as (k * R, in), the last tap first."""
    return a if a.ndim == 2 else a.flip(2).permute(2, 0, 1).flatten(0, 1)


def _scale_b(b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """scale * B (out, r)."""
    return (b.flatten(1) * scale).to(dtype)


def _project_down(x: Tensor, a: Tensor) -> Tensor:
    """A x: (B * N, R)."""
    if a.ndim == 2:
        return x.reshape(-1, x.shape[-1]) @ a.T
    image, weight = x.transpose(1, 2).unsqueeze(2), tap_major(a).unsqueeze(2)
    return F.conv2d(image, weight, padding=(0, a.shape[2] // 2)).squeeze(2).transpose(1, 2).reshape(-1, a.shape[0])
