"""peft's LoRA layers with a fused forward and backward pass: the same function in fewer passes over the activations.

peft casts the branch's input to float32, applies dropout, casts back, scales and adds, each with one pass forward and
two backward. Here `addmm_` adds the low-rank product into the base output, the scale is folded into B, dropout masks
come from random bits, and the backward pass keeps only the input, the mask and the low-rank activations. Anything but
plain LoRA in training (DoRA, several adapters, merged, compiled) runs peft's own code.

B batch, N tokens, r rank, k kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmaudio.model.layers import Conv1d, tap_major, token_windows

MASK_LEVELS = 1 << 16
"""Each mask element uses 16 random bits, so the dropout rate is exact to 1 / 65 536."""


class _FusedLoRA:
    """Forward pass shared by the linear and convolution layers."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Base output plus LoRA output: (B, N, in) -> (B, N, out)."""
        layer: Any = self
        names = layer.active_adapters
        plain = not (layer.disable_adapters or layer.merged or layer.lora_variant or args or kwargs)
        if not plain or len(names) != 1 or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            out: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return out
        a, b, drop = (half[names[0]] for half in (layer.lora_A, layer.lora_B, layer.lora_dropout))
        dropout = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0
        return add_low_rank(layer.base_layer(x), x, a.weight, b.weight, layer.scaling[names[0]], dropout)


class FusedLoRALinear(_FusedLoRA, lora.Linear):  # type: ignore[misc]
    """peft's LoRA linear with the fused pass."""


class FusedLoRAConv1d(_FusedLoRA, lora.Conv1d):  # type: ignore[misc]
    """peft's LoRA convolution with the fused pass, for the network's convolutions along the tokens."""


LORA_LAYERS: dict[type[nn.Module], type[nn.Module]] = {Conv1d: FusedLoRAConv1d, nn.Linear: FusedLoRALinear}
"""LoRA layer by base layer; another adaptable layer type is one more entry."""


def add_low_rank(base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """base + scale * B A dropout(x), in the dtype of `base` (B, N, out), whose memory is overwritten.

    x (B, N, in), a (r, in) or (r, in, k), b (out, r) or (out, r, 1).
    """
    out: Tensor = _LowRank.apply(base, x, a, b, scale, dropout)  # type: ignore[no-untyped-call]
    return out


def dropout_mask(x: Tensor, dropout: float) -> Tensor:
    """Mask of zeros with probability `dropout`, else ones, like x; from torch's default generator of the device."""
    if x.device.type != "cpu":
        return torch.empty_like(x).bernoulli_(1 - dropout)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    mask = torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.ge(bits, round(dropout * MASK_LEVELS) - MASK_LEVELS // 2, out=mask)


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float) -> Tensor:
        """Compute the output (B, N, out)."""
        dtype = base.dtype
        x = x.to(dtype)
        mask = dropout_mask(x, dropout) if dropout else None
        ctx.scale = scale / (1 - dropout)
        with torch.autocast(base.device.type, enabled=False):
            low = _project_down(_apply_mask(x, mask), a.to(dtype))  # (B * N, r)
            out = base.detach().contiguous()  # an in-place change of base itself would copy in the backward pass
            out.view(-1, out.shape[-1]).addmm_(low, _scale_b(b, ctx.scale, dtype).T)
        ctx.save_for_backward(x, mask, a, b, low)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`."""
        x, mask, a, b, low = ctx.saved_tensors
        dtype, kernel_size = x.dtype, _kernel_size(a)
        rows = gradient.reshape(-1, gradient.shape[-1])
        with torch.autocast(gradient.device.type, enabled=False):
            grad_low = rows @ _scale_b(b, ctx.scale, dtype)  # (B * N, r)
            grad_b = (rows.T @ low).to(b.dtype).mul_(ctx.scale).view_as(b)
            grad_low = grad_low.view(*x.shape[:2], -1)
            grad_a = _gradient_of_a(grad_low, _apply_mask(x, mask), kernel_size).to(a.dtype)  # (r, k, in)
            grad_x = None
            if ctx.needs_input_grad[1]:
                taps = a.to(dtype).view(*a.shape[:2], kernel_size)
                flipped = taps.flip(2).permute(2, 0, 1).flatten(0, 1)  # (k * r, in)
                grad_x = (token_windows(grad_low, kernel_size) @ flipped).view_as(x)
                grad_x = _apply_mask(grad_x, mask)
        return gradient, grad_x, grad_a.transpose(1, 2).reshape(a.shape), grad_b, None, None


def _kernel_size(a: Tensor) -> int:
    return a.shape[2] if a.ndim == 3 else 1


def _scale_b(b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """scale * B (out, r)."""
    return (b.flatten(1) * scale).to(dtype)


def _apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _project_down(x: Tensor, a: Tensor) -> Tensor:
    """A x: (B * N, r)."""
    if a.ndim == 2:
        return x.reshape(-1, x.shape[2]) @ a.T
    image, weight = x.transpose(1, 2).unsqueeze(2), tap_major(a).unsqueeze(2)
    return F.conv2d(image, weight, padding=(0, a.shape[2] // 2)).squeeze(2).transpose(1, 2).reshape(-1, a.shape[0])


def _gradient_of_a(grad_low: Tensor, x: Tensor, kernel_size: int) -> Tensor:
    """Gradient of A (r, k, in): the sum over tokens of grad_low (B, N, r) times each neighbour in x (B, N, in).

    Zeros between the clips separate them, so one matrix product per tap suffices, without copying token windows.
    """
    padding = kernel_size // 2
    low, rows = (F.pad(tokens, (0, 0, padding, padding)).flatten(0, 1) for tokens in (grad_low, x))
    count = len(rows) - 2 * padding
    low = low[padding : padding + count].T
    return torch.stack([low @ rows[tap : tap + count] for tap in range(kernel_size)], 1)
