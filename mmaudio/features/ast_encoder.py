"""Synchformer's audio branch: an Audio Spectrogram Transformer, then one feature per time step of a segment.

Source: arXiv 2401.16423 (Synchformer), arXiv 2104.01778 (AST); keys as in the released checkpoint, which follow
transformers 4.

Legend: B segments of 0.64 s, F patches along the frequency (12), T patches along the time (6), P = F T, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmaudio.features.synchformer import MLP_RATIO, FramePool

MELS, FRAMES = 128, 66
"""Mel bands and frames of a segment's picture."""
PATCH, STRIDE = 16, 10
BANDS, STEPS = ((size - PATCH) // STRIDE + 1 for size in (MELS, FRAMES))
"""Patches along the frequency and along the time."""
LEADING = 2
"""Tokens before the patches: class and distillation."""
EPS = 1e-12
"""Epsilon of the transformer's LayerNorms; the pooling's is Synchformer's."""
DEPTH = 12


class Dense(nn.Module):
    """A linear under the name `dense`."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        out: Tensor = self.dense(x)
        return out


class Heads(nn.Module):
    """Softmax attention of several heads, without the projection after it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) -> the same."""
        q, k, v = (rearrange(part(x), "b n (h d) -> b h n d", h=self.heads) for part in self.parts)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")

    @property
    def parts(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """The projections to queries, keys and values."""
        return self.query, self.key, self.value


class Attention(nn.Module):
    """`Heads` and the projection after them, under the released names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Heads(width, heads)
        self.output = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) -> the same."""
        out: Tensor = self.output(self.attention(x))
        return out


class Layer(nn.Module):
    """Attention and MLP, each pre-normed and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.intermediate = Dense(width, MLP_RATIO * width)
        self.output = Dense(MLP_RATIO * width, width)
        self.layernorm_before = nn.LayerNorm(width, eps=EPS)
        self.layernorm_after = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) -> the same."""
        x = x + self.attention(self.layernorm_before(x))
        out: Tensor = x + self.output(F.gelu(self.intermediate(self.layernorm_after(x))))
        return out


class Patches(nn.Module):
    """Overlapping patches of the picture as tokens, band by band, after the leading tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, LEADING + BANDS * STEPS, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(1, width, PATCH, STRIDE)})

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, MELS, FRAMES) -> (B, 2 + P, D), the frequency first."""
        tokens = rearrange(self.patch_embeddings["projection"](pictures[:, None]), "b d f t -> b (f t) d")
        leading = torch.cat([self.cls_token, self.distillation_token], dim=1).expand(len(tokens), -1, -1)
        return torch.cat([leading, tokens], dim=1) + self.position_embeddings


class Encoder(nn.Module):
    """The layers, under the released name."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(width, heads) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) -> the same."""
        for layer in self.layer:
            x = layer(x)
        return x


class Transformer(nn.Module):
    """The Audio Spectrogram Transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.embeddings = Patches(width)
        self.encoder = Encoder(width, heads)
        self.layernorm = nn.LayerNorm(width, eps=EPS)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, MELS, FRAMES) -> (B, 2 + P, D)."""
        out: Tensor = self.layernorm(self.encoder(self.embeddings(pictures)))
        return out


class SpectrogramTransformer(nn.Module):
    """A segment's log-mel picture -> one feature per time step, pooled over the frequency."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ast = Transformer(width, heads)
        self.freq_attn_agg = FramePool(width, heads)

    def forward(self, pictures: Tensor) -> Tensor:
        """Normalised log-mel pictures (B, MELS, FRAMES) -> (B, T, D)."""
        patches = rearrange(self.ast(pictures)[:, LEADING:], "b (f t) d -> (b t) f d", f=BANDS)
        pooled: Tensor = self.freq_attn_agg(patches)
        return rearrange(pooled, "(b t) d -> b t d", t=STEPS)
