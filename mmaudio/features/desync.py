"""DeSync, the offset between audio and video in time: Synchformer's audio branch and its offset classifier.

    model = load_desync("small_16k", folder)
    seconds = model.score(sync_features, waveforms, sample_rate)    # sync_features: as the network reads them

Source: arXiv 2401.16423; the score is that of arXiv 2412.15322. Keys as in the released Synchformer file, which holds
the visual branch (`synchformer`) too.

Legend: B waveforms, S segments (24), T time steps of a segment (8 of video, 6 of audio), L tokens, D width.
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
from mmaudio.features.ast_encoder import N_FRAMES, N_MELS, TIME_PATCHES, ASTEncoder
from mmaudio.features.attention import multi_head_attention
from mmaudio.features.synchformer import AUDIO_PREFIXES, MLP_RATIO
from mmaudio.model.spec import CLIP_SECONDS, SYNC_ENCODERS, TOKENS_PER_SEGMENT, SyncSpec, lookup, model_spec
from mmaudio.model.state_dict import ReleasedModule, load_strict
from mmaudio.weights.load_frozen import load_frozen

COMPONENT = "synchformer"
"""The model's component with the released file."""
SAMPLE_RATE = 16_000
N_SEGMENTS = 24
SEGMENT_SAMPLES, SEGMENT_STRIDE = 10_240, 5_120
"""Samples of a segment, and between the starts of two."""
MEAN, SCALE = -4.2677393, 2 * 4.5689974
"""Normalisation of the log-mel values."""
LOG_EPS = 1e-6
"""Added to the mel power before its logarithm."""
WINDOW_SEGMENTS = 14
"""Segments of the classifier's input."""
N_OFFSETS = 21
"""Classes: from -2 to +2 s."""
OFFSET_SECONDS = 0.2
"""Seconds between two classes."""
DEPTH, NUM_HEADS = 3, 8


class SelfAttention(nn.Module):
    """Multi-head attention with the output projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        out: Tensor = self.proj(multi_head_attention(self.query(x), self.key(x), self.value(x), NUM_HEADS))
        return out


class Block(nn.Module):
    """Attention and MLP, each pre-normed and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = SelfAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.attn(self.ln1(x))
        out: Tensor = x + self.mlp(self.ln2(x))
        return out


class PositionEmbedding(nn.Module):
    """Learnt positions, under the released name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        n_tokens = 2 + WINDOW_SEGMENTS * (TOKENS_PER_SEGMENT + TIME_PATCHES)
        self.pos_emb = nn.Parameter(torch.zeros(1, n_tokens, width))


class OffsetClassifier(nn.Module):
    """Video and audio features of 14 segments -> logits of the offset between the two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.OFF_tok = nn.Parameter(torch.zeros(1, 1, width))
        self.MOD_tok = nn.Parameter(torch.zeros(1, 1, width))
        self.vis_in_lnorm = nn.LayerNorm(width)
        self.aud_in_lnorm = nn.LayerNorm(width)
        self.pos_emb_cfg = PositionEmbedding(width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(DEPTH)))
        self.ln_f = nn.LayerNorm(width)
        self.off_head = nn.Linear(width, N_OFFSETS)

    def forward(self, video_f: Tensor, audio_f: Tensor) -> Tensor:
        """(B, 14 x 8, D) and (B, 14 x 6, D) -> (B, 21)."""
        offset, separator = (repeat(token, "1 1 d -> b 1 d", b=len(video_f)) for token in (self.OFF_tok, self.MOD_tok))
        tokens = [offset, self.vis_in_lnorm(video_f), separator, self.aud_in_lnorm(audio_f)]
        x = self.blocks(torch.cat(tokens, dim=1) + self.pos_emb_cfg.pos_emb)
        logits: Tensor = self.off_head(self.ln_f(x[:, 0]))
        return logits


class DeSync(ReleasedModule):
    """The audio branch and the offset classifier, with the key prefixes of the released file."""

    def __init__(self, spec: SyncSpec) -> None:
        super().__init__()
        self.spec = spec
        self.afeat_extractor = ASTEncoder(spec.width, spec.num_heads)
        self.vproj = nn.Linear(spec.width, spec.width)
        self.aproj = nn.Linear(spec.width, spec.width)
        self.transformer = OffsetClassifier(spec.width)

    def encode_audio(self, log_mel: Tensor) -> Tensor:
        """Normalised log-mel spectrograms (B, S, N_MELS, N_FRAMES) -> (B, S, 6, D), each segment on its own."""
        features: Tensor = self.afeat_extractor(rearrange(log_mel, "b s f t -> (b s) f t"))
        return rearrange(features, "(b s) t d -> b s t d", b=len(log_mel))

    def predict_logits(self, video_f: Tensor, audio_f: Tensor) -> Tensor:
        """Features of 14 segments, (B, 14, 8, D) and (B, 14, 6, D) -> logits of the offset (B, 21)."""
        projected = self.vproj(video_f), self.aproj(audio_f)
        logits: Tensor = self.transformer(*(rearrange(x, "b s t d -> b (s t) d") for x in projected))
        return logits

    def score(self, sync_f: Tensor, waveforms: Tensor, sample_rate: int) -> Tensor:
        """Mean size of `predict_offsets` in seconds (B,), 0 to 2, lower is better; NaN below 8 s of audio or video."""
        return self.predict_offsets(sync_f, waveforms, sample_rate).abs().mean(1)

    @torch.inference_mode()
    def predict_offsets(self, sync_f: Tensor, waveforms: Tensor, sample_rate: int) -> Tensor:
        """The likeliest offset in seconds over the first 14 and over the last 14 of 24 segments, (B, 2), on the CPU.

        `sync_f` (tokens, D): the clip's features of the visual branch; `waveforms` (B, samples). Audio after 8 s is
        ignored; NaN below 8 s.
        """
        n_tokens = N_SEGMENTS * TOKENS_PER_SEGMENT
        waveforms = resample(waveforms, sample_rate, SAMPLE_RATE)
        if len(sync_f) < n_tokens or waveforms.shape[1] < CLIP_SECONDS * SAMPLE_RATE:
            return torch.full((len(waveforms), 2), math.nan)
        video_f = repeat(sync_f[:n_tokens], "(s t) d -> b s t d", b=len(waveforms), t=TOKENS_PER_SEGMENT)
        log_mels = (segment_log_mel(waveform[None]) for waveform in waveforms)
        audio_f = torch.cat([self.encode_audio(log_mel) for log_mel in log_mels])  # 24 segments fill a batch
        windows = (slice(WINDOW_SEGMENTS), slice(-WINDOW_SEGMENTS, None))
        logits = [self.predict_logits(video_f[:, window], audio_f[:, window]) for window in windows]
        return torch.stack([logits_to_seconds(x) for x in logits], dim=1).cpu()

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load the released file without its visual branch; WeightsError where that is all it holds, or for others."""
        if not has_classifier(state):
            keys = ", ".join(AUDIO_PREFIXES)
            raise WeightsError(f"Synchformer {self.spec.name} has no offset classifier (keys {keys}...)")
        load_strict(self, state, f"Synchformer {self.spec.name}", ("vfeat_extractor.",))


def logits_to_seconds(logits: Tensor) -> Tensor:
    """Logits (B, 21) -> the likeliest offset in seconds (B,), from -2 to +2."""
    return (logits.argmax(1) - N_OFFSETS // 2) * OFFSET_SECONDS


def segment_log_mel(waveforms: Tensor) -> Tensor:
    """8 s at 16 kHz (B, samples) -> normalised log-mel spectrograms of the segments (B, 24, N_MELS, N_FRAMES)."""
    mel = MelSpectrogram(SAMPLE_RATE, n_fft=1024, win_length=400, hop_length=160, n_mels=N_MELS).to(waveforms.device)
    segments = waveforms[:, : round(CLIP_SECONDS * SAMPLE_RATE)].unfold(1, SEGMENT_SAMPLES, SEGMENT_STRIDE)
    log_mel = (mel(segments) + LOG_EPS).log()
    return (F.pad(log_mel, (0, N_FRAMES - log_mel.shape[-1])) - MEAN) / SCALE


def has_classifier(state: Mapping[str, Tensor]) -> bool:
    """Whether a Synchformer file holds more than the visual branch."""
    return any(key.startswith(AUDIO_PREFIXES) for key in state)


def build_desync(name: str = "synchformer") -> DeSync:
    """Build the audio branch and classifier of the Synchformer `name`, with fresh weights.

    Raises ConfigError that names the nearest known one.
    """
    return DeSync(lookup(SYNC_ENCODERS, name, "synchformer"))


def load_desync(model: str, folder: Path | None = None, device: torch.device | str = "cpu") -> DeSync:
    """Load the audio branch and classifier of `model`, frozen; WeightsError for a file without them."""
    spec = model_spec(model).sync
    return load_frozen(lambda: DeSync(spec), model, COMPONENT, folder, device)
