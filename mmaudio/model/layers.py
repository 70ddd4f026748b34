"""The network's layers: convolutions over tokens, gated MLPs, rotary attention inputs, time embedding.

Activations are (B, tokens, channels) throughout. B batch, N tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmaudio.model import fused_ops as by_hand

THETA = 10_000.0


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` over (B, N, in) -> (B, N, out), zero padding; constructor and weights (out, in, k) are the same.

    Computed as a 2-D convolution of height 1: (B, N, channels) is its channels-last layout, so no activation is
    copied. Against transposing for a 1-D convolution that saves a sixth to two thirds of the time of forward and
    backward on a CPU (widths 20 to 256, k 3 and 7, float32 and bf16). Weights laid out tap by tap (`by_taps`) take
    three quarters of that time again; where no gradients are wanted, as in sampling, they are multiplied with the
    tokens' windows in one matrix product.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        if _lies_by_taps(self) and not torch.is_grad_enabled():
            rows = windows(x, self.kernel_size[0])
            return F.linear(rows, self.weight.transpose(1, 2).flatten(1), self.bias).view(*x.shape[:2], -1)
        image, weight = x.transpose(1, 2).unsqueeze(2), self.weight.unsqueeze(2)  # (B, in, 1, N), (out, in, 1, k)
        padding = self.padding if isinstance(self.padding, str) else (0, *self.padding)
        out = F.conv2d(image, weight, self.bias, (1, *self.stride), padding, (1, *self.dilation), self.groups)
        return out.squeeze(2).transpose(1, 2)


def windows(x: Tensor, kernel: int) -> Tensor:
    """Every token of x (B, N, C) with its neighbours, zeros beyond the ends: (B * N, kernel * C); `kernel` is odd."""
    if kernel == 1:
        return x.reshape(-1, x.shape[-1])
    reach = kernel // 2
    seen = F.pad(x, (0, 0, reach, reach)).unfold(1, kernel, 1)  # (B, N, C, kernel), no copy yet
    return seen.transpose(2, 3).reshape(-1, kernel * x.shape[2])


def by_taps(weight: Tensor) -> Tensor:
    """A copy of a convolution's weight (out, in, k) that lies in memory as (out, k, in)."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


def _lies_by_taps(layer: nn.Conv1d) -> bool:
    plain = isinstance(layer.padding, tuple) and layer.stride == layer.dilation == (1,) and layer.groups == 1
    return plain and layer.weight.shape[2] > 1 and layer.weight.transpose(1, 2).is_contiguous()


def token_layer(width_in: int, width_out: int, kernel: int, bias: bool = True) -> nn.Module:
    """A linear for kernel 1, else a convolution along the tokens that keeps their number."""
    if kernel == 1:
        return nn.Linear(width_in, width_out, bias=bias)
    return Conv1d(width_in, width_out, kernel, padding=kernel // 2, bias=bias)


class MLP(nn.Module):
    """Gated SiLU, w2(silu(w1 x) * w3 x), without biases; `kernel` 1 for linears, else convolutions."""

    def __init__(self, width: int, hidden: int, kernel: int = 1) -> None:
        super().__init__()
        inner = -(-(2 * hidden // 3) // 256) * 256  # rounded up to a multiple of 256
        self.w1 = token_layer(width, inner, kernel, bias=False)
        self.w2 = token_layer(inner, width, kernel, bias=False)
        self.w3 = token_layer(width, inner, kernel, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> the same."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class TimeEmbedding(nn.Module):
    """Cosines and sines of the flow time, then two linears: (B,) -> (B, D)."""

    def __init__(self, width: int, features: int, period: float) -> None:
        super().__init__()
        self.features, self.period = features, period
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def sinusoid(self, t: Tensor) -> Tensor:
        """(B,) -> (B, features), float32: the angles of v2 reach 10 000, where bf16 keeps nothing of t."""
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
    """Rotates the channel pairs (2i, 2i+1) of x (B, H, N, d) in float32; returns x's dtype."""
    cos, sin = table
    even, odd = rearrange(x.float(), "b h n (i two) -> two b h n i", two=2)
    turned = torch.addcmul(even * cos, odd, sin, value=-1), torch.addcmul(even * sin, odd, cos)
    return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine, then x * (1 + scale) + shift; shift and scale are (B, 1 or N, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


class HeadNorm(nn.RMSNorm):
    """RMSNorm over a head's channels, in float32, with the machine epsilon of the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> the same, float32."""
        eps = torch.finfo(x.dtype).eps
        return F.rms_norm(x.float(), tuple(self.normalized_shape), self.weight.float(), eps)


class SelfAttention(nn.Module):
    """The input side of attention: q, k, v of one stream; there is no output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = HeadNorm(width // heads)
        self.k_norm = HeadNorm(width // heads)

    def forward(self, x: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> q, k, v, each (B, H, N, d); q and k normalised, and rotated where there is a table."""
        qkv = self.qkv(x)
        if by_hand.applies(qkv, self.q_norm.weight, self.k_norm.weight):
            weights = torch.stack([self.q_norm.weight, self.k_norm.weight])
            return by_hand.head_inputs(qkv, weights, table, self.heads)
        q, k, v = rearrange(qkv, "b n (h d three) -> three b h n d", h=self.heads, three=3)
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return q.to(v.dtype), k.to(v.dtype), v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale 1/sqrt(d); heads merged: (B, H, N, d) -> (B, N, D)."""
    if v.dtype == torch.bfloat16 and by_hand.applies(v):
        return rearrange(by_hand.attention(q, k, v), "b h n d -> b n (h d)")
    # v comes strided from the qkv layout, and the fused kernels want its channels side by side
    return rearrange(F.scaled_dot_product_attention(q, k, v.contiguous()), "b h n d -> b n (h d)")
