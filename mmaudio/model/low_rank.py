"""peft's layers with a backward pass of their own for plain LoRA: the same function, fewer passes over the activations.

peft casts the branch's input to float32, drops, casts it back, scales and adds, each a pass forward and two backward.
Here the low-rank product is added into the base's output by the product itself, the scale goes into B, masks come from
random bits, and what the backward pass needs is the input, the mask and the low-rank activations. All that is no plain
LoRA in training (DoRA, several adapters, merged, compiled) is peft's.

B batch, N tokens, r rank, k kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmaudio.model.layers import Conv1d, windows

DRAWS = 1 << 16
"""A mask's element is decided by 16 random bits: the share dropped is right to a part in 65 536."""


class _Quick:
    """What both kinds of layers share."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output with the adapter's: (B, N, in) -> (B, N, out)."""
        layer: Any = self
        names = layer.active_adapters
        plain = not (layer.disable_adapters or layer.merged or layer.lora_variant or args or kwargs)
        if not plain or len(names) != 1 or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            out: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return out
        a, b, drop = (half[names[0]] for half in (layer.lora_A, layer.lora_B, layer.lora_dropout))
        share = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0
        return add_low_rank(layer.base_layer(x), x, a.weight, b.weight, layer.scaling[names[0]], share)


class QuickLinear(_Quick, lora.Linear):  # type: ignore[misc]
    """peft's linear."""


class QuickConv1d(_Quick, lora.Conv1d):  # type: ignore[misc]
    """peft's convolution, of this network's convolutions along the tokens."""


KINDS: dict[type[nn.Module], type[nn.Module]] = {Conv1d: QuickConv1d, nn.Linear: QuickLinear}
"""What takes the place of which layer."""


def add_low_rank(base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """base + scale * B A dropout(x), in the type of `base` (B, N, out), which is overwritten.

    x (B, N, in), a (r, in) or (r, in, k), b (out, r) or (out, r, 1).
    """
    out: Tensor = _LowRank.apply(base, x, a, b, scale, dropout)  # type: ignore[no-untyped-call]
    return out


def keep_mask(x: Tensor, dropout: float) -> Tensor:
    """Ones, and zeros for a share of `dropout`, like x; drawn from torch's default generator of the device."""
    if x.device.type != "cpu":
        return torch.empty_like(x).bernoulli_(1 - dropout)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    mask = torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.ge(bits, round(dropout * DRAWS) - DRAWS // 2, out=mask)


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float) -> Tensor:
        """The function."""
        dtype = base.dtype
        x = x.to(dtype)
        mask = keep_mask(x, dropout) if dropout else None
        ctx.scale = scale / (1 - dropout)
        with torch.autocast(base.device.type, enabled=False):
            low = _rows(x, mask, _kernel(a)) @ _flat(a, dtype).T  # (B * N, r)
            out = base.detach().contiguous()  # base itself would become a view of what is changed: copies in backward
            out.view(-1, out.shape[-1]).addmm_(low, _scaled(b, ctx.scale, dtype).T)
        ctx.save_for_backward(x, mask, a, b, low)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of its arguments."""
        x, mask, a, b, low = ctx.saved_tensors
        dtype, kernel = x.dtype, _kernel(a)
        rows = gradient.reshape(-1, gradient.shape[-1])
        with torch.autocast(gradient.device.type, enabled=False):
            for_low = rows @ _scaled(b, ctx.scale, dtype)  # (B * N, r)
            for_b = (rows.T @ low).to(b.dtype).mul_(ctx.scale).view_as(b)
            for_a = (for_low.T @ _rows(x, mask, kernel)).to(a.dtype)
            for_x = None
            if ctx.needs_input_grad[1]:
                turned = a.to(dtype).view(*a.shape[:2], kernel).flip(2).permute(2, 0, 1).flatten(0, 1)  # (k * r, in)
                for_x = (_rows(for_low.view(*x.shape[:2], -1), None, kernel) @ turned).view_as(x)
                for_x = for_x if mask is None else for_x.mul_(mask)
        for_a = for_a.view(a.shape[0], kernel, -1).transpose(1, 2).view_as(a) if kernel > 1 else for_a.view_as(a)
        return gradient, for_x, for_a, for_b, None, None


def _kernel(a: Tensor) -> int:
    return a.shape[2] if a.ndim == 3 else 1


def _flat(a: Tensor, dtype: torch.dtype) -> Tensor:
    """(r, in, k) as (r, k * in)."""
    a = a.to(dtype)
    return a.transpose(1, 2).flatten(1) if a.ndim == 3 else a


def _scaled(b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """scale * B (out, r)."""
    return (b.flatten(1) * scale).to(dtype)


def _rows(x: Tensor, mask: Tensor | None, kernel: int) -> Tensor:
    """The tokens' windows (B * N, k * in) of what is kept of x."""
    return windows(x if mask is None else x * mask, kernel)
