"""The MMAudio network written plainly, of `nn.Linear` and `nn.Conv1d`, with the released keys.

The benchmarks compare the package's network with it, in time and in value.

B batch, H heads, N latent tokens, S sync tokens, V CLIP tokens, L text tokens, D width, d head width.
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

ROTARY_BASE = 10_000.0
Streams = tuple[Tensor, Tensor, Tensor]


class TokenConv(nn.Conv1d):
    """A convolution along the tokens of (B, N, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def build_layer(inputs: int, outputs: int, kernel: int, bias: bool) -> nn.Module:
    """A linear for kernel 1, else a convolution."""
    if kernel == 1:
        return nn.Linear(inputs, outputs, bias=bias)
    return TokenConv(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        inner = 256 * ((8 * width // 3 + 255) // 256)
        self.w1 = build_layer(width, inner, kernel, bias=False)
        self.w2 = build_layer(inner, width, kernel, bias=False)
        self.w3 = build_layer(width, inner, kernel, bias=False)

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
    """Queries, keys and values of one stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = HeadNorm(width // heads)
        self.k_norm = HeadNorm(width // heads)

    def forward(self, x: Tensor, rotations: Tensor | None) -> Streams:
        """(B, N, D) -> q, k, v."""
        q, k, v = rearrange(self.qkv(x), "b n (h d three) -> three b h n d", h=self.heads, three=3)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        return q.to(v.dtype), k.to(v.dtype), v


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Each pair of channels of x (B, H, N, d) as a complex number, times `rotations` (N, d / 2)."""
    pairs = torch.view_as_complex(rearrange(x.float(), "... (i two) -> ... i two", two=2).contiguous())
    return torch.view_as_real(pairs * rotations).flatten(-2).to(x.dtype)


def compute_rotations(tokens: int, width: int, scale: float, device: torch.device) -> Tensor:
    """Unit complex numbers (tokens, d / 2)."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, width, 2, device=device) / width) * scale
    angles = torch.arange(tokens, device=device)[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with its heads side by side: (B, N, D)."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class Block(nn.Module):
    """Transformer block of one stream."""

    def __init__(self, width: int, heads: int, kernel: int, has_mlp: bool = True) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        if has_mlp:
            self.linear1 = build_layer(width, width, kernel, bias=True)
            self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
            self.ffn = FeedForward(width, kernel)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (6 if has_mlp else 2) * width))

    def attention_inputs(self, x: Tensor, c: Tensor, rotations: Tensor | None) -> tuple[Streams, tuple[Tensor, ...]]:
        """q, k, v, and the modulation of the further layers."""
        modulation = self.adaLN_modulation(c)
        shift, scale, *further = modulation.chunk(modulation.shape[-1] // c.shape[-1], dim=-1)
        inputs: Streams = self.attn(self.norm1(x) * (1 + scale) + shift, rotations)
        return inputs, tuple(further)

    def finish(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """The stream after attention and MLP."""
        gate, shift, scale, gate_mlp = modulation
        x = x + gate * self.linear1(attended)
        update: Tensor = self.ffn(self.norm2(x) * (1 + scale) + shift)
        return x + gate_mlp * update

    def forward(self, x: Tensor, c: Tensor, rotations: Tensor) -> Tensor:
        """Self-attention and MLP."""
        inputs, modulation = self.attention_inputs(x, c, rotations)
        return self.finish(x, attend(*inputs), modulation)


class JointBlock(nn.Module):
    """Transformer block of three streams with joint attention."""

    def __init__(self, width: int, heads: int, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        self.latent_block = Block(width, heads, 3)
        self.clip_block = Block(width, heads, 3, has_mlp=not is_last)
        self.text_block = Block(width, heads, 1, has_mlp=not is_last)

    def forward(self, streams: Streams, c: Tensor, per_token: Tensor, rotations: tuple[Tensor, Tensor]) -> Streams:
        """The streams after the block."""
        blocks = (self.latent_block, self.clip_block, self.text_block)
        arguments = zip(blocks, streams, (per_token, c, c), (*rotations, None), strict=True)
        prepared = [block.attention_inputs(x, condition, rotation) for block, x, condition, rotation in arguments]
        inputs, modulations = zip(*prepared, strict=True)
        attended = attend(*(torch.cat(tensors, dim=2) for tensors in zip(*inputs, strict=True)))
        by_stream = torch.split(attended, [x.shape[1] for x in streams], dim=1)
        latent = self.latent_block.finish(streams[0], by_stream[0], modulations[0])
        if self.is_last:
            return latent, streams[1], streams[2]
        return (
            latent,
            self.clip_block.finish(streams[1], by_stream[1], modulations[1]),
            self.text_block.finish(streams[2], by_stream[2], modulations[2]),
        )


class PlainNetwork(nn.Module):
    """The whole network; `gradient_checkpointing` recomputes every block in the backward pass."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, spec: NetworkSpec, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.spec, self.gradient_checkpointing, width = spec, gradient_checkpointing, spec.width
        self.sync_pos_emb = nn.Parameter(torch.zeros(1, 1, TOKENS_PER_SEGMENT, spec.sync_dim))
        self.empty_string_feat = nn.Parameter(torch.zeros(spec.text_tokens, spec.text_dim))
        self.empty_clip_feat = nn.Parameter(torch.zeros(1, spec.clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.zeros(1, spec.sync_dim))
        self.register_buffer("latent_mean", torch.zeros(1, 1, spec.latent_dim))
        self.register_buffer("latent_std", torch.ones(1, 1, spec.latent_dim))
        activation = nn.SiLU if spec.v2 else nn.SELU
        middle = (nn.SiLU(),) if spec.v2 else ()
        self.audio_input_proj = nn.Sequential(
            TokenConv(spec.latent_dim, width, 7, padding=3), activation(), FeedForward(width, 7)
        )
        self.clip_input_proj = nn.Sequential(nn.Linear(spec.clip_dim, width), *middle, FeedForward(width, 3))
        self.sync_input_proj = nn.Sequential(
            TokenConv(spec.sync_dim, width, 7, padding=3), activation(), FeedForward(width, 3)
        )
        self.text_input_proj = nn.Sequential(nn.Linear(spec.text_dim, width), *middle, FeedForward(width, 1))
        self.clip_cond_proj = nn.Linear(width, width)
        self.text_cond_proj = nn.Linear(width, width)
        self.time_features = width if spec.v2 else 256
        self.t_embed = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(self.time_features, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.global_cond_mlp = FeedForward(width, 1)
        self.joint_blocks = nn.ModuleList(
            JointBlock(width, spec.num_heads, is_last=index == spec.num_joint_blocks - 1)
            for index in range(spec.num_joint_blocks)
        )
        self.fused_blocks = nn.ModuleList(Block(width, spec.num_heads, 3) for _ in range(spec.num_fused_blocks))
        self.final_layer = nn.ModuleDict(
            {
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
                "conv": TokenConv(width, spec.latent_dim, 7, padding=3),
            }
        )

    def project(self, clip_f: Tensor, sync_f: Tensor, text_f: Tensor) -> Conditions:
        """Raw features (B, V, clip_dim), (B, S, sync_dim), (B, L, text_dim) through the input projections.

        `sync_f` is then resampled to the latent's tokens.
        """
        clip_f, text_f = self.clip_input_proj(clip_f), self.text_input_proj(text_f)
        segments = rearrange(sync_f, "b (s k) c -> b s k c", k=TOKENS_PER_SEGMENT) + self.sync_pos_emb
        sync_f = self.sync_input_proj(segments.flatten(1, 2)).transpose(1, 2)
        sync_f = F.interpolate(sync_f, self.spec.latent_tokens, mode="nearest-exact").transpose(1, 2)
        clip_c, text_c = self.clip_cond_proj(clip_f.mean(1)), self.text_cond_proj(text_f.mean(1))
        return Conditions(clip_f, sync_f, text_f, clip_c, text_c)

    def embed_time(self, t: Tensor) -> Tensor:
        """The time embedding (B, D) of t (B,)."""
        frequencies = 1 / ROTARY_BASE ** (torch.arange(0, self.time_features, 2, device=t.device) / self.time_features)
        angles = t[:, None] * (frequencies * (ROTARY_BASE if self.spec.v2 else 1.0))
        embedding: Tensor = self.t_embed["mlp"](torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedding

    def predict_velocity(self, latent: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """Velocity (B, N, C), as the package's network computes it, from conditions that `project` made."""
        size, head = latent.shape[1], self.spec.width // self.spec.num_heads
        clips = conditions.clip_f.shape[1]
        rotations = compute_rotations(size, head, 1.0, t.device), compute_rotations(clips, head, size / clips, t.device)
        c = (self.embed_time(t.expand(len(latent))) + self.global_cond_mlp(conditions.clip_c + conditions.text_c))[
            :, None
        ]
        per_token = c + conditions.sync_f
        streams = (self.audio_input_proj(latent), conditions.clip_f, conditions.text_f)
        for block in self.joint_blocks:
            streams = self._run(block, streams, c, per_token, rotations)
        x = streams[0]
        for block in self.fused_blocks:
            x = self._run(block, x, per_token, rotations[0])
        shift, scale = self.final_layer["adaLN_modulation"](c).chunk(2, dim=-1)
        velocity: Tensor = self.final_layer["conv"](F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)
        return velocity

    def _run(self, block: nn.Module, *inputs: Any) -> Any:
        """Call the block, under gradient checkpointing where that is on."""
        return checkpoint(block, *inputs, use_reentrant=False) if self.gradient_checkpointing else block(*inputs)

    def forward(self, latent: Tensor, t: Tensor, clip_f: Tensor, sync_f: Tensor, text_f: Tensor) -> Tensor:
        """Velocity (B, N, C) from the latent, times (B,) and raw features."""
        return self.predict_velocity(latent, t, self.project(clip_f, sync_f, text_f))
