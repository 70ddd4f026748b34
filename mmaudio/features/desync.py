"""How far a sound is from its picture in time: Synchformer's audio branch and its classifier of the offset.

    judge = load_desync("small_16k", folder)
    seconds = judge.score(sync_features, waveforms, rate)    # the picture's features are those that the network reads

Source: arXiv 2401.16423; the score is that of arXiv 2412.15322. Keys as in the released Synchformer file, which holds
the visual branch (`synchformer`) too.

Legend: B sounds, S segments (24), T time steps of a segment (8 seen, 6 heard), D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torchaudio.functional import resample
from torchaudio.transforms import MelSpectrogram

from mmaudio.errors import WeightsError
from mmaudio.features.ast_encoder import FRAMES, MELS, STEPS, SpectrogramTransformer
from mmaudio.features.synchformer import LEFT_OUT, MLP_RATIO
from mmaudio.model.spec import SECONDS, SYNCS, TOKENS_PER_SEGMENT, SyncSpec, lookup, model_spec
from mmaudio.model.state_dict import Released, load_reconciled
from mmaudio.weights.load_frozen import load_frozen

PART = "synchformer"
"""The released file's part of a model."""
RATE = 16_000
SEGMENTS = 24
SEGMENT, STEP = 10_240, 5_120
"""Samples of a segment and between the starts of two."""
MEAN, SCALE = -4.2677393, 2 * 4.5689974
"""What the log-mel values are normalised with."""
SMALLEST = 1e-6
"""Added to the mel power before its logarithm."""
WINDOW = 14
"""Segments that the classifier sees together."""
OFFSETS = 21
"""Classes: from -2 to +2 s."""
STEP_SECONDS = 0.2
DEPTH, HEADS = 3, 8


class Heads(nn.Module):
    """Softmax attention of several heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) -> the same."""
        parts = (self.query, self.key, self.value)
        q, k, v = (rearrange(part(x), "b n (h d) -> b h n d", h=HEADS) for part in parts)
        out: Tensor = self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))
        return out


class Block(nn.Module):
    """Attention and MLP, each pre-normed and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = Heads(width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, D) -> the same."""
        x = x + self.attn(self.ln1(x))
        out: Tensor = x + self.mlp(self.ln2(x))
        return out


class Positions(nn.Module):
    """Learnt positions, under the released name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(torch.zeros(1, 2 + WINDOW * (TOKENS_PER_SEGMENT + STEPS), width))


class OffsetClassifier(nn.Module):
    """What is seen and heard in 14 segments -> logits of the offset between the two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.OFF_tok = nn.Parameter(torch.zeros(1, 1, width))
        self.MOD_tok = nn.Parameter(torch.zeros(1, 1, width))
        self.vis_in_lnorm = nn.LayerNorm(width)
        self.aud_in_lnorm = nn.LayerNorm(width)
        self.pos_emb_cfg = Positions(width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(DEPTH)))
        self.ln_f = nn.LayerNorm(width)
        self.off_head = nn.Linear(width, OFFSETS)

    def forward(self, seen: Tensor, heard: Tensor) -> Tensor:
        """(B, 14 x 8, D) and (B, 14 x 6, D) -> (B, 21)."""
        first, between = (repeat(token, "1 1 d -> b 1 d", b=len(seen)) for token in (self.OFF_tok, self.MOD_tok))
        tokens = [first, self.vis_in_lnorm(seen), between, self.aud_in_lnorm(heard)]
        x = self.blocks(torch.cat(tokens, dim=1) + self.pos_emb_cfg.pos_emb)
        logits: Tensor = self.off_head(self.ln_f(x[:, 0]))
        return logits


class DeSync(Released):
    """The audio branch and the classifier, with the key prefixes of the released file."""

    def __init__(self, spec: SyncSpec) -> None:
        super().__init__()
        self.spec = spec
        self.afeat_extractor = SpectrogramTransformer(spec.width, spec.heads)
        self.vproj = nn.Linear(spec.width, spec.width)
        self.aproj = nn.Linear(spec.width, spec.width)
        self.transformer = OffsetClassifier(spec.width)

    def hear(self, pictures: Tensor) -> Tensor:
        """Normalised log-mel pictures (B, S, MELS, FRAMES) -> (B, S, 6, D), each segment on its own."""
        features: Tensor = self.afeat_extractor(rearrange(pictures, "b s f t -> (b s) f t"))
        return rearrange(features, "(b s) t d -> b s t d", b=len(pictures))

    def logits(self, seen: Tensor, heard: Tensor) -> Tensor:
        """14 segments of both branches' features, (B, 14, 8, D) and (B, 14, 6, D) -> logits of the offset (B, 21)."""
        projected = self.vproj(seen), self.aproj(heard)
        out: Tensor = self.transformer(*(rearrange(part, "b s t d -> b (s t) d") for part in projected))
        return out

    def score(self, seen: Tensor, waveforms: Tensor, rate: int) -> Tensor:
        """Seconds that sounds are off the picture (B,), 0 to 2, lower is better; NaN below 8 s of sound or picture.

        The mean of `offsets`' sizes.
        """
        return self.offsets(seen, waveforms, rate).abs().mean(1)

    @torch.inference_mode()
    def offsets(self, seen: Tensor, waveforms: Tensor, rate: int) -> Tensor:
        """The likeliest offset in seconds over the first 14 and over the last 14 of 24 segments, (B, 2), on the CPU.

        `seen`: what the visual branch gave for the clip (tokens, D); `waveforms`: (B, samples) at `rate`. What is after
        8 s is not heard; NaN below 8 s.
        """
        tokens = SEGMENTS * TOKENS_PER_SEGMENT
        sound = resample(waveforms, rate, RATE)
        if len(seen) < tokens or sound.shape[1] < SECONDS * RATE:
            return torch.full((len(waveforms), 2), math.nan)
        picture = repeat(seen[:tokens], "(s t) d -> b s t d", b=len(waveforms), t=TOKENS_PER_SEGMENT)
        heard = torch.cat([self.hear(pictures_of(wave[None])) for wave in sound])  # 24 segments fill a batch
        parts = [self.logits(picture[:, part], heard[:, part]) for part in (slice(WINDOW), slice(-WINDOW, None))]
        return torch.stack([offset_seconds(part) for part in parts], dim=1).cpu()

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load the released file without its visual branch; WeightsError where that is all it holds, or for others."""
        if not has_classifier(state):
            raise WeightsError(f"Synchformer {self.spec.name} has no offset classifier (keys {', '.join(LEFT_OUT)}...)")
        load_reconciled(self, state, f"Synchformer {self.spec.name}", ("vfeat_extractor.",))


def offset_seconds(logits: Tensor) -> Tensor:
    """The likeliest offset of (B, 21), from -2 to +2 s, (B,)."""
    return (logits.argmax(1) - OFFSETS // 2) * STEP_SECONDS


def pictures_of(sound: Tensor) -> Tensor:
    """8 s of sound at 16 kHz (B, samples) -> normalised log-mel pictures of its segments (B, 24, MELS, FRAMES)."""
    mel = MelSpectrogram(RATE, n_fft=1024, win_length=400, hop_length=160, n_mels=MELS).to(sound.device)
    segments = sound[:, : round(SECONDS * RATE)].unfold(1, SEGMENT, STEP)
    logarithm = (mel(segments) + SMALLEST).log()
    return (F.pad(logarithm, (0, FRAMES - logarithm.shape[-1])) - MEAN) / SCALE


def has_classifier(state: Mapping[str, Tensor]) -> bool:
    """Whether a Synchformer file holds more than the visual branch."""
    return any(key.startswith(LEFT_OUT) for key in state)


def build_desync(name: str = "synchformer") -> DeSync:
    """Those of the Synchformer called `name` in SYNCS, with fresh weights; ConfigError names the nearest one."""
    return DeSync(lookup(SYNCS, name, "synchformer"))


def load_desync(model: str, folder: Path | None = None, device: torch.device | str = "cpu") -> DeSync:
    """The audio branch and classifier of `model` with their weights, frozen; WeightsError for a file without them."""
    spec = model_spec(model).sync
    return load_frozen(lambda: DeSync(spec), model, PART, folder, device)
