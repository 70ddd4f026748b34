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
import torch.nn.functional as F
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmaudio.model.layers import Conv1d, by_taps, windows

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
            low = _narrowed(_kept(x, mask), a.to(dtype))  # (B * N, r)
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
            for_low = for_low.view(*x.shape[:2], -1)
            for_a = _outer(for_low, _kept(x, mask), kernel).to(a.dtype)  # (r, k, in)
            for_x = None
            if ctx.needs_input_grad[1]:
                turned = a.to(dtype).view(*a.shape[:2], kernel).flip(2).permute(2, 0, 1).flatten(0, 1)  # (k * r, in)
                for_x = (windows(for_low, kernel) @ turned).view_as(x)
                for_x = _kept(for_x, mask)
        return gradient, for_x, for_a.transpose(1, 2).reshape(a.shape), for_b, None, None


def _kernel(a: Tensor) -> int:
    return a.shape[2] if a.ndim == 3 else 1


def _scaled(b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """scale * B (out, r)."""
    return (b.flatten(1) * scale).to(dtype)


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _narrowed(x: Tensor, a: Tensor) -> Tensor:
    """A x: (B * N, r)."""
    if a.ndim == 2:
        return x.reshape(-1, x.shape[2]) @ a.T
    image, weight = x.transpose(1, 2).unsqueeze(2), by_taps(a).unsqueeze(2)
    return F.conv2d(image, weight, padding=(0, a.shape[2] // 2)).squeeze(2).transpose(1, 2).reshape(-1, a.shape[0])


def _outer(for_low: Tensor, x: Tensor, kernel: int) -> Tensor:
    """A's gradient (r, k, in): the sum over tokens of for_low (B, N, r) times every neighbour in x (B, N, in).

    Zeros between the clips keep them apart, so a product per tap does, without a copy of the tokens' windows.
    """
    reach = kernel // 2
    low, rows = (F.pad(tokens, (0, 0, reach, reach)).flatten(0, 1) for tokens in (for_low, x))
    count = len(rows) - 2 * reach
    low = low[reach : reach + count].T
    return torch.stack([low @ rows[tap : tap + count] for tap in range(kernel)], 1)
