"""The network's layers: convolutions over tokens, gated MLPs, rotary attention inputs, time embedding.

Activations are (B, tokens, channels) throughout. B batch, N tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmaudio.model import fused_ops

THETA = 10_000.0


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` over (B, N, in) -> (B, N, out), zero padding; constructor and weights (out, in, k) are the same.

    Computed as a 2-D convolution of height 1: (B, N, channels) is its channels-last layout, so no activation is
    copied. Against transposing for a 1-D convolution that saves a sixth to two thirds of the time of forward and
    backward on a CPU (widths 20 to 256, k 3 and 7, float32 and bf16). Weights laid out tap by tap (`tap_major`) take
    three quarters of that time again; without gradients, as in sampling, they are multiplied with the token windows in
    one matrix product.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        if not torch.is_grad_enabled() and _is_tap_major(self):
            return self._multiply(token_windows(x, self.kernel_size[0]), x)
        image, weight = x.transpose(1, 2).unsqueeze(2), self.weight.unsqueeze(2)  # (B, in, 1, N), (out, in, 1, k)
        padding = self.padding if isinstance(self.padding, str) else (0, *self.padding)
        out = F.conv2d(image, weight, self.bias, (1, *self.stride), padding, (1, *self.dilation), self.groups)
        return out.squeeze(2).transpose(1, 2)

    def forward_both(self, other: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of this layer and of `other` for the same x (B, N, in); the token windows are made once."""
        if (
            torch.is_grad_enabled()
            or not (isinstance(other, Conv1d) and _is_tap_major(self) and _is_tap_major(other))
            or self.kernel_size != other.kernel_size
        ):
            return self(x), other(x)
        rows = token_windows(x, self.kernel_size[0])
        return self._multiply(rows, x), other._multiply(rows, x)

    def _multiply(self, rows: Tensor, x: Tensor) -> Tensor:
        """Token windows (B * N, k * in) of x times the weight, whose layout is tap by tap: (B, N, out)."""
        return F.linear(rows, self.weight.transpose(1, 2).flatten(1), self.bias).view(*x.shape[:2], -1)


def conv_input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient (B, N, in) of the input of a `Conv1d` with weight (out, in, k), odd k, from that of its output."""
    image, weight = gradient.transpose(1, 2).unsqueeze(2), weight.unsqueeze(2)
    out = F.conv_transpose2d(image, weight, padding=(0, weight.shape[3] // 2))
    return out.squeeze(2).transpose(1, 2)


def token_windows(x: Tensor, kernel_size: int) -> Tensor:
    """Every token of x (B, N, C) with its neighbours, zero-padded: (B * N, kernel_size * C), for an odd kernel size."""
    if kernel_size == 1:
        return x.reshape(-1, x.shape[-1])
    padding = kernel_size // 2
    windows = F.pad(x, (0, 0, padding, padding)).unfold(1, kernel_size, 1)  # (B, N, C, kernel_size), no copy yet
    return windows.transpose(2, 3).reshape(-1, kernel_size * x.shape[2])


def tap_major(weight: Tensor) -> Tensor:
    """Copy of a convolution's weight (out, in, k) with the memory layout (out, k, in)."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def _is_tap_major(layer: nn.Conv1d) -> bool:
    is_supported = isinstance(layer.padding, tuple) and layer.stride == layer.dilation == (1,) and layer.groups == 1
    return is_supported and layer.weight.shape[2] > 1 and layer.weight.transpose(1, 2).is_contiguous()


def token_layer(width_in: int, width_out: int, kernel_size: int, bias: bool = True) -> nn.Module:
    """A linear for kernel size 1, else a convolution along the tokens that preserves their number."""
    if kernel_size == 1:
        return nn.Linear(width_in, width_out, bias=bias)
    return Conv1d(width_in, width_out, kernel_size, padding=kernel_size // 2, bias=bias)


def apply_both(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of two layers for the same x; `first.forward_both(second, x)`, where it has one, shares work.

    That runs no hooks of the layers.
    """
    forward_both = getattr(first, "forward_both", None)
    outputs: tuple[Tensor, Tensor] = (first(x), second(x)) if forward_both is None else forward_both(second, x)
    return outputs


class MLP(nn.Module):
    """SwiGLU, w2(silu(w1 x) * w3 x), without biases: linears for kernel size 1, else convolutions."""

    def __init__(self, width: int, hidden: int, kernel_size: int = 1) -> None:
        super().__init__()
        inner = -(-(2 * hidden // 3) // 256) * 256  # rounded up to a multiple of 256
        self.w1 = token_layer(width, inner, kernel_size, bias=False)
        self.w2 = token_layer(inner, width, kernel_size, bias=False)
        self.w3 = token_layer(width, inner, kernel_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        gate, values = apply_both(self.w1, self.w3, x)
        in_place = not torch.is_grad_enabled()
        out: Tensor = self.w2(F.silu(gate, inplace=True).mul_(values) if in_place else F.silu(gate) * values)
        return out


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the flow time, then two linears: (B,) -> (B, D)."""

    def __init__(self, width: int, features: int, period: float) -> None:
        super().__init__()
        self.features, self.period = features, period
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def sinusoid(self, t: Tensor) -> Tensor:
        """(B,) -> (B, features), float32: the angles of v2 reach 10 000, too large for the precision of bf16."""
        steps = torch.arange(0, self.features, 2, dtype=torch.float32, device=t.device)
        frequencies = (THETA / self.period) * (1.0 / THETA ** (steps / self.features))
        angles = t.float()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) in [0, 1] -> (B, D)."""
        out: Tensor = self.mlp(self.sinusoid(t).to(next(self.mlp.parameters()).dtype))
        return out


def rotary_table(tokens: int, width: int, scale: float, device: torch.device) -> Tensor:
    """Cosines and sines of position * theta^(-2i/d) * scale: (2, tokens, d/2), float32."""
    powers = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    positions = torch.arange(tokens, dtype=torch.float32, device=device)
    angles = positions[:, None] * (1.0 / THETA**powers * scale)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the channel pairs (2i, 2i+1) of x (B, H, N, d) in float32; returns the dtype of x."""
    cos, sin = table
    even, odd = rearrange(x.float(), "b h n (i two) -> two b h n i", two=2)
    rotated = torch.addcmul(even * cos, odd, sin, value=-1), torch.addcmul(even * sin, odd, cos)
    return torch.stack(rotated, dim=-1).flatten(-2).to(x.dtype)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine, then x * (1 + scale) + shift; shift and scale are (B, 1 or N, D)."""
    if fused_ops.can_fuse(x, shift, scale):
        return fused_ops.modulated_layer_norm(x, shift, scale)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


def add_gated(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y; x and y are (B, N, D), the gate (B, 1 or N, D)."""
    return fused_ops.add_gated(x, gate, y) if fused_ops.can_fuse(y, gate) else torch.addcmul(x, gate, y)


class HeadNorm(nn.RMSNorm):
    """RMSNorm over a head's channels, in float32, with the machine epsilon of the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d), float32."""
        eps = torch.finfo(x.dtype).eps
        return F.rms_norm(x.float(), tuple(self.normalized_shape), self.weight.float(), eps)


class SelfAttention(nn.Module):
    """Queries, keys and values of one stream; there is no output projection."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = HeadNorm(width // num_heads)
        self.k_norm = HeadNorm(width // num_heads)

    def forward(self, x: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> q, k, v, each (B, H, N, d); q and k are normalised, and rotated if a table is given."""
        qkv = self.qkv(x)
        if fused_ops.is_sampling(qkv) or fused_ops.can_fuse(qkv, self.q_norm.weight, self.k_norm.weight):
            weights = torch.stack([self.q_norm.weight, self.k_norm.weight])
            return fused_ops.fused_head_inputs(qkv, weights, table, self.num_heads)
        q, k, v = rearrange(qkv, "b n (h d three) -> three b h n d", h=self.num_heads, three=3)
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return q.to(v.dtype), k.to(v.dtype), v


def attend_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale 1/sqrt(d) and merged heads: (B, H, N, d) -> (B, N, D)."""
    if v.dtype == torch.bfloat16 and fused_ops.can_fuse(v):
        return rearrange(fused_ops.cpu_attention(q, k, v), "b h n d -> b n (h d)")
    if v.dtype == torch.bfloat16 and fused_ops.can_store_scores(q, k):
        return rearrange(fused_ops.sampling_attention(q, k, v), "b h n d -> b n (h d)")
    # v is strided in the qkv layout, and the fused kernels need contiguous channels
    return rearrange(F.scaled_dot_product_attention(q, k, v.contiguous()), "b h n d -> b n (h d)")
