"""The MMAudio network written plainly, of `nn.Linear` and `nn.Conv1d`, with the released keys: what the benchmarks
compare the product's network with, in time and in value.

B batch, N latent tokens, S sync tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmaudio.model.networks import Conditions
from mmaudio.model.spec import TOKENS_PER_SEGMENT, NetworkSpec

THETA = 10_000.0
Streams = tuple[Tensor, Tensor, Tensor]


class Conv(nn.Conv1d):
    """A convolution along the tokens of (B, N, channels): transposed, convolved, transposed back."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def layer(inputs: int, outputs: int, kernel: int, bias: bool) -> nn.Module:
    """A linear for kernel 1, else a convolution."""
    if kernel == 1:
        return nn.Linear(inputs, outputs, bias=bias)
    return Conv(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        inner = 256 * ((8 * width // 3 + 255) // 256)
        self.w1 = layer(width, inner, kernel, bias=False)
        self.w2 = layer(inner, width, kernel, bias=False)
        self.w3 = layer(width, inner, kernel, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> the same."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class HeadNorm(nn.RMSNorm):
    """RMSNorm over a head's channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> the same."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """The inputs of attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = HeadNorm(width // heads)
        self.k_norm = HeadNorm(width // heads)

    def forward(self, x: Tensor, turns: Tensor | None) -> Streams:
        """(B, N, D) -> q, k, v."""
        q, k, v = rearrange(self.qkv(x), "b n (h d three) -> three b h n d", h=self.heads, three=3)
        q, k = self.q_norm(q), self.k_norm(k)
        if turns is not None:
            q, k = turned(q, turns), turned(k, turns)
        return q.to(v.dtype), k.to(v.dtype), v


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Each pair of channels of x (B, H, N, d) as a complex number, times `turns` (N, d / 2)."""
    pairs = torch.view_as_complex(rearrange(x.float(), "... (i two) -> ... i two", two=2).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def angles(tokens: int, width: int, scale: float, device: torch.device) -> Tensor:
    """Unit complex numbers (tokens, d / 2)."""
    frequencies = THETA ** -(torch.arange(0, width, 2, device=device) / width) * scale
    turns = torch.arange(tokens, device=device)[:, None] * frequencies
    return torch.polar(torch.ones_like(turns), turns)


def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with its heads side by side: (B, N, D)."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class Block(nn.Module):
    """One stream."""

    def __init__(self, width: int, heads: int, kernel: int, whole: bool = True) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        if whole:
            self.linear1 = layer(width, width, kernel, bias=True)
            self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
            self.ffn = FeedForward(width, kernel)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (6 if whole else 2) * width))

    def before(self, x: Tensor, c: Tensor, turns: Tensor | None) -> tuple[Streams, tuple[Tensor, ...]]:
        """q, k, v and what the rest of the block is modulated by."""
        modulation = self.adaLN_modulation(c)
        shift, scale, *rest = modulation.chunk(modulation.shape[-1] // c.shape[-1], dim=-1)
        inputs: Streams = self.attn(self.norm1(x) * (1 + scale) + shift, turns)
        return inputs, tuple(rest)

    def after(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """The stream after attention and MLP."""
        gate, shift, scale, gate_mlp = modulation
        x = x + gate * self.linear1(attended)
        changed: Tensor = self.ffn(self.norm2(x) * (1 + scale) + shift)
        return x + gate_mlp * changed

    def forward(self, x: Tensor, c: Tensor, turns: Tensor) -> Tensor:
        """Self-attention and MLP."""
        inputs, modulation = self.before(x, c, turns)
        return self.after(x, merged(*inputs), modulation)


class Joint(nn.Module):
    """Three streams, attended together."""

    def __init__(self, width: int, heads: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.latent_block = Block(width, heads, 3)
        self.clip_block = Block(width, heads, 3, whole=not last)
        self.text_block = Block(width, heads, 1, whole=not last)

    def forward(self, streams: Streams, c: Tensor, per_token: Tensor, turns: tuple[Tensor, Tensor]) -> Streams:
        """The streams after the block."""
        blocks = (self.latent_block, self.clip_block, self.text_block)
        inputs, modulations = zip(
            *(
                block.before(x, condition, turn)
                for block, x, condition, turn in zip(blocks, streams, (per_token, c, c), (*turns, None), strict=True)
            ),
            strict=True,
        )
        attended = merged(*(torch.cat(parts, dim=2) for parts in zip(*inputs, strict=True)))
        parts = torch.split(attended, [x.shape[1] for x in streams], dim=1)
        latent = self.latent_block.after(streams[0], parts[0], modulations[0])
        if self.last:
            return latent, streams[1], streams[2]
        return (
            latent,
            self.clip_block.after(streams[1], parts[1], modulations[1]),
            self.text_block.after(streams[2], parts[2], modulations[2]),
        )


class PlainNetwork(nn.Module):
    """The whole network; `checkpointing` recomputes every block in the backward pass."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, spec: NetworkSpec, checkpointing: bool = False) -> None:
        super().__init__()
        self.spec, self.checkpointing, width = spec, checkpointing, spec.width
        self.sync_pos_emb = nn.Parameter(torch.zeros(1, 1, TOKENS_PER_SEGMENT, spec.sync_dim))
        self.empty_string_feat = nn.Parameter(torch.zeros(spec.text_tokens, spec.text_dim))
        self.empty_clip_feat = nn.Parameter(torch.zeros(1, spec.clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.zeros(1, spec.sync_dim))
        self.register_buffer("latent_mean", torch.zeros(1, 1, spec.latent_dim))
        self.register_buffer("latent_std", torch.ones(1, 1, spec.latent_dim))
        first = nn.SiLU if spec.v2 else nn.SELU
        between = (nn.SiLU(),) if spec.v2 else ()
        self.audio_input_proj = nn.Sequential(
            Conv(spec.latent_dim, width, 7, padding=3), first(), FeedForward(width, 7)
        )
        self.clip_input_proj = nn.Sequential(nn.Linear(spec.clip_dim, width), *between, FeedForward(width, 3))
        self.sync_input_proj = nn.Sequential(Conv(spec.sync_dim, width, 7, padding=3), first(), FeedForward(width, 3))
        self.text_input_proj = nn.Sequential(nn.Linear(spec.text_dim, width), *between, FeedForward(width, 1))
        self.clip_cond_proj = nn.Linear(width, width)
        self.text_cond_proj = nn.Linear(width, width)
        self.features = width if spec.v2 else 256
        self.t_embed = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(self.features, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.global_cond_mlp = FeedForward(width, 1)
        self.joint_blocks = nn.ModuleList(
            Joint(width, spec.heads, last=index == spec.joint_blocks - 1) for index in range(spec.joint_blocks)
        )
        self.fused_blocks = nn.ModuleList(Block(width, spec.heads, 3) for _ in range(spec.fused_blocks))
        self.final_layer = nn.ModuleDict(
            {
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
                "conv": Conv(width, spec.latent_dim, 7, padding=3),
            }
        )

    def projected(self, clip_f: Tensor, sync_f: Tensor, text_f: Tensor) -> Conditions:
        """Raw features (B, V, clip_dim), (B, S, sync_dim), (B, L, text_dim) through the input projections."""
        clip_f, text_f = self.clip_input_proj(clip_f), self.text_input_proj(text_f)
        segments = rearrange(sync_f, "b (s k) c -> b s k c", k=TOKENS_PER_SEGMENT) + self.sync_pos_emb
        sync_f = self.sync_input_proj(segments.flatten(1, 2)).transpose(1, 2)
        sync_f = F.interpolate(sync_f, self.spec.latent_tokens, mode="nearest-exact").transpose(1, 2)
        clip_c, text_c = self.clip_cond_proj(clip_f.mean(1)), self.text_cond_proj(text_f.mean(1))
        return Conditions(clip_f, sync_f, text_f, clip_c, text_c)

    def time(self, t: Tensor) -> Tensor:
        """The time embedding (B, D) of t (B,)."""
        frequencies = 1 / THETA ** (torch.arange(0, self.features, 2, device=t.device) / self.features)
        turns = t[:, None] * (frequencies * (THETA if self.spec.v2 else 1.0))
        out: Tensor = self.t_embed["mlp"](torch.cat([turns.cos(), turns.sin()], dim=-1))
        return out

    def predict_velocity(self, latent: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Velocity (B, N, C), as the product's network computes it."""
        size, head = latent.shape[1], self.spec.width // self.spec.heads
        clips = conditions.clip_f.shape[1]
        turns = angles(size, head, 1.0, t.device), angles(clips, head, size / clips, t.device)
        c = (self.time(t.expand(len(latent))) + self.global_cond_mlp(conditions.clip_c + conditions.text_c))[:, None]
        per_token = c + conditions.sync_f
        streams = (self.audio_input_proj(latent), conditions.clip_f, conditions.text_f)
        for block in self.joint_blocks:
            streams = self.run(block, streams, c, per_token, turns)
        x = streams[0]
        for block in self.fused_blocks:
            x = self.run(block, x, per_token, turns[0])
        shift, scale = self.final_layer["adaLN_modulation"](c).chunk(2, dim=-1)
        velocity: Tensor = self.final_layer["conv"](F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)
        return velocity

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """The block's output."""
        return checkpoint(block, *inputs, use_reentrant=False) if self.checkpointing else block(*inputs)

    def forward(self, latent: Tensor, t: Tensor, clip_f: Tensor, sync_f: Tensor, text_f: Tensor) -> Tensor:
        """Velocity (B, N, C) from the latent, times (B,) and raw features."""
        return self.predict_velocity(latent, t, self.projected(clip_f, sync_f, text_f))
