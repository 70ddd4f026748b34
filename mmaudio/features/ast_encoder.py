"""Synchformer's audio branch: an Audio Spectrogram Transformer, then one feature per time step of a segment.

Source: arXiv 2401.16423 (Synchformer), arXiv 2104.01778 (AST); keys as in the released checkpoint, which follow
transformers 4.

Legend: B segments of 0.64 s, F patches along the frequency (12), T patches along the time (6), P = F T, L tokens,
D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmaudio.features.attention import multi_head_attention
from mmaudio.features.synchformer import MLP_RATIO, FramePool

N_MELS, N_FRAMES = 128, 66
"""Mel bands and frames of a segment's spectrogram."""
PATCH_SIZE, PATCH_STRIDE = 16, 10
FREQ_PATCHES, TIME_PATCHES = ((size - PATCH_SIZE) // PATCH_STRIDE + 1 for size in (N_MELS, N_FRAMES))
PREFIX_TOKENS = 2
"""Tokens before the patches: class and distillation."""
EPS = 1e-12
"""Epsilon of the transformer's LayerNorms; the pooling's is Synchformer's."""
DEPTH = 12


class Dense(nn.Module):
    """A linear under the name `dense`."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out_width)."""
        out: Tensor = self.dense(x)
        return out


class SelfAttention(nn.Module):
    """Multi-head attention without the output projection."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return multi_head_attention(self.query(x), self.key(x), self.value(x), self.num_heads)


class Attention(nn.Module):
    """`SelfAttention` and the output projection, under the released names."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads)
        self.output = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        out: Tensor = self.output(self.attention(x))
        return out


class Layer(nn.Module):
    """Attention and MLP, each pre-normed and added."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads)
        self.intermediate = Dense(width, MLP_RATIO * width)
        self.output = Dense(MLP_RATIO * width, width)
        self.layernorm_before = nn.LayerNorm(width, eps=EPS)
        self.layernorm_after = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.attention(self.layernorm_before(x))
        out: Tensor = x + self.output(F.gelu(self.intermediate(self.layernorm_after(x))))
        return out


class Embeddings(nn.Module):
    """Overlapping patches of the spectrogram as tokens, frequency first, after the prefix tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, PREFIX_TOKENS + FREQ_PATCHES * TIME_PATCHES, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(1, width, PATCH_SIZE, PATCH_STRIDE)})

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, N_MELS, N_FRAMES) -> (B, 2 + P, D)."""
        patches = rearrange(self.patch_embeddings["projection"](log_mel[:, None]), "b d f t -> b (f t) d")
        prefix = torch.cat([self.cls_token, self.distillation_token], dim=1).expand(len(patches), -1, -1)
        return torch.cat([prefix, patches], dim=1) + self.position_embeddings


class Encoder(nn.Module):
    """The layers, under the released name."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(width, num_heads) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        for layer in self.layer:
            x = layer(x)
        return x


class ASTModel(nn.Module):
    """The Audio Spectrogram Transformer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(width)
        self.encoder = Encoder(width, num_heads)
        self.layernorm = nn.LayerNorm(width, eps=EPS)

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, N_MELS, N_FRAMES) -> (B, 2 + P, D)."""
        out: Tensor = self.layernorm(self.encoder(self.embeddings(log_mel)))
        return out


class ASTEncoder(nn.Module):
    """A segment's log-mel spectrogram -> one feature per time step, pooled over the frequency."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ast = ASTModel(width, num_heads)
        self.freq_attn_agg = FramePool(width, num_heads)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Normalised log-mel spectrograms (B, N_MELS, N_FRAMES) -> (B, T, D)."""
        patches = self.ast(log_mel)[:, PREFIX_TOKENS:]  # (B, P, D)
        pooled: Tensor = self.freq_attn_agg(rearrange(patches, "b (f t) d -> (b t) f d", f=FREQ_PATCHES))
        return rearrange(pooled, "(b t) d -> b t d", t=TIME_PATCHES)
