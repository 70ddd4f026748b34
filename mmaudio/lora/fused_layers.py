"""peft's LoRA layers with a fused forward and backward pass: the same function in fewer passes over the activations.

peft casts the branch's input to float32, applies dropout, casts back, scales and adds, each with one pass forward and
two backward. Here `addmm_` adds the low-rank product into the base output, the scale is folded into B, dropout masks
come from random bits, and the backward pass adds the low-rank gradient into that of a frozen base layer. It keeps only
the dropped input, the mask and the low-rank activations. Anything but plain LoRA in training (DoRA, several adapters,
merged, compiled) runs peft's own code.

B batch, N tokens, r rank, k kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmaudio.model.layers import Conv1d, conv_input_gradient, tap_major, token_windows

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
        base, weights = layer.base_layer, (a.weight, b.weight)
        if any(parameter.requires_grad for parameter in base.parameters()):
            return add_low_rank(base(x), x, *weights, layer.scaling[names[0]], dropout)
        return add_low_rank(base(x.detach()), x, *weights, layer.scaling[names[0]], dropout, base.weight)


class FusedLoRALinear(_FusedLoRA, lora.Linear):  # type: ignore[misc]
    """peft's LoRA linear with the fused pass."""


class FusedLoRAConv1d(_FusedLoRA, lora.Conv1d):  # type: ignore[misc]
    """peft's LoRA convolution with the fused pass, for the network's convolutions along the tokens."""


LORA_LAYERS: dict[type[nn.Module], type[nn.Module]] = {Conv1d: FusedLoRAConv1d, nn.Linear: FusedLoRALinear}
"""LoRA layer by base layer; another adaptable layer type is one more entry."""


def add_low_rank(
    base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    """base + scale * B A dropout(x), in the dtype of `base` (B, N, out), whose memory is overwritten.

    x (B, N, in), a (r, in) or (r, in, k), b (out, r) or (out, r, 1). Where the base layer is frozen, `base` is its
    output without a gradient and `weight` its weight, (out, in) or (out, in, k): the gradient of x includes its own.
    """
    out: Tensor = _LowRank.apply(base, x, a, b, scale, dropout, weight)  # type: ignore[no-untyped-call]
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
    def forward(
        ctx: Any, base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float, weight: Tensor | None
    ) -> Tensor:
        """Compute the output (B, N, out)."""
        dtype = base.dtype
        x = x.to(dtype)
        mask = dropout_mask(x, dropout) if dropout else None
        ctx.scale = scale / (1 - dropout)
        with torch.autocast(base.device.type, enabled=False):
            dropped = x if mask is None else x * mask
            low = _project_down(dropped, a.to(dtype))  # (B * N, r)
            out = base.detach().contiguous()  # an in-place change of base itself would copy in the backward pass
            out.view(-1, out.shape[-1]).addmm_(low, _scale_b(b, ctx.scale, dtype).T)
        ctx.save_for_backward(dropped, mask, a, b, low, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments of `forward`."""
        x, mask, a, b, low, weight = ctx.saved_tensors
        dtype, kernel_size = x.dtype, a.shape[2] if a.ndim == 3 else 1
        rows = gradient.reshape(-1, gradient.shape[-1])
        with torch.autocast(gradient.device.type, enabled=False):
            grad_low = rows @ _scale_b(b, ctx.scale, dtype)  # (B * N, r)
            grad_b = (rows.T @ low).to(b.dtype).mul_(ctx.scale).view_as(b)
            windows = token_windows(grad_low.view(*x.shape[:2], -1), kernel_size)  # (B * N, k * r)
            grad_a = (windows.T @ x.reshape(-1, x.shape[-1])).to(a.dtype).view(kernel_size, len(a), -1)
            grad_x = None
            if ctx.needs_input_grad[1]:
                grad_x = (windows @ _flip_taps(a.to(dtype))).view_as(x)
                grad_x = _add_base_gradient(grad_x, mask, gradient, weight)
        return gradient, grad_x, grad_a.flip(0).permute(1, 2, 0).reshape(a.shape), grad_b, None, None, None


def _add_base_gradient(grad_x: Tensor, mask: Tensor | None, gradient: Tensor, weight: Tensor | None) -> Tensor:
    """The low-rank gradient of x (B, N, in), masked, plus that of the base layer of this weight, where there is one."""
    if weight is None:
        return grad_x if mask is None else grad_x.mul_(mask)
    weight = weight.to(gradient.dtype)
    base = gradient @ weight if weight.ndim == 2 else conv_input_gradient(gradient, weight)
    return base.add_(grad_x) if mask is None else base.addcmul_(grad_x, mask)


def _flip_taps(a: Tensor) -> Tensor:
    """A (r, in) or (r, in, k) as (k * r, in), the last tap first."""
    return a if a.ndim == 2 else a.flip(2).permute(2, 0, 1).flatten(0, 1)


def _scale_b(b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """scale * B (out, r)."""
    return (b.flatten(1) * scale).to(dtype)


def _project_down(x: Tensor, a: Tensor) -> Tensor:
    """A x: (B * N, r)."""
    if a.ndim == 2:
        return x.reshape(-1, x.shape[2]) @ a.T
    image, weight = x.transpose(1, 2).unsqueeze(2), tap_major(a).unsqueeze(2)
    return F.conv2d(image, weight, padding=(0, a.shape[2] // 2)).squeeze(2).transpose(1, 2).reshape(-1, a.shape[0])
