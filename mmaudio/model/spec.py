"""The sizes of every model, written once: codecs, visual encoders, networks, and the lengths for a duration.

Source: the released checkpoints' keys and shapes (arXiv 2412.15322), and this repository's `pretrain_tiny.py`.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TypeVar

from mmaudio.errors import ConfigError

T = TypeVar("T")

SECONDS = 8.0
"""Duration of a training clip in seconds."""
TEXT_TOKENS = 77
CLIP_FPS = 8
SYNC_FPS = 25
SEGMENT_FRAMES = 16
"""Frames of one Synchformer segment."""
SEGMENT_STEP = 8
"""Frames between the starts of two segments."""
TOKENS_PER_SEGMENT = 8


@dataclass(frozen=True)
class CodecSpec:
    """Mel spectrogram, VAE and vocoder of one sampling rate."""

    name: str
    rate: int
    """Samples per second."""
    n_fft: int
    """Samples; the window is as long."""
    hop: int
    """Samples per mel frame."""
    mels: int
    log_base: float
    """10 for the common logarithm, math.e for the natural one."""
    vae_width: int
    latent_dim: int
    vocoder: str
    """`bigvgan` or `griffin_lim`."""
    upsample_rates: tuple[int, ...] = ()
    upsample_kernels: tuple[int, ...] = ()
    vocoder_width: int = 1536
    vocoder_tanh: bool = True
    """True: the last layer has a bias and ends in tanh. False: no bias, clamped to [-1, 1]."""

    @property
    def mel_range(self) -> tuple[float, float]:
        """Lowest and highest frequency of the mel bank in hertz."""
        return 0.0, self.rate / 2


@dataclass(frozen=True)
class SyncSpec:
    """Synchformer's visual branch (Motionformer, divided space-time attention)."""

    name: str
    size: int
    """Side of a frame in pixels."""
    width: int
    depth: int
    heads: int
    patch: int = 16
    tubelet: int = 2
    """Frames per patch."""

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.patch


@dataclass(frozen=True)
class ClipSpec:
    """A CLIP model as open_clip builds it."""

    name: str
    architecture: str
    """An architecture that open_clip knows, or the stem of a JSON file of ours beside the weights."""
    size: int
    """Side of a frame in pixels."""
    image_dim: int
    text_dim: int
    image_width: int
    """Width of the image tower."""
    image_layers: int
    patch: int


@dataclass(frozen=True)
class NetworkSpec:
    """The flow-matching transformer."""

    latent_dim: int
    clip_dim: int
    sync_dim: int
    text_dim: int
    width: int
    heads: int
    joint_blocks: int
    fused_blocks: int
    latent_tokens: int
    clip_tokens: int
    sync_tokens: int
    v2: bool = False
    text_tokens: int = TEXT_TOKENS
    mlp_ratio: int = 4


@dataclass(frozen=True)
class ModelSpec:
    """A base model: its network, codec and encoders, and how it is used by default."""

    name: str
    network: NetworkSpec
    codec: CodecSpec
    clip: ClipSpec
    sync: SyncSpec
    licence: str
    guidance: float = 4.5
    """Default strength of classifier-free guidance."""
    steps: int = 25
    """Default number of solver steps."""
    embedded: bool = False
    """True: the weights ship with the package."""


@dataclass(frozen=True)
class Lengths:
    """Token counts and the sample count of a duration."""

    latent: int
    clip: int
    """CLIP frames, one token each."""
    sync: int
    """Synchformer tokens."""
    samples: int
    """Audio samples: exactly latent * hop * 2."""

    @property
    def sync_segments(self) -> int:
        """Segments of 16 frames."""
        return self.sync // TOKENS_PER_SEGMENT

    @property
    def sync_frames(self) -> int:
        """Frames at 25 fps that the segments cover."""
        return (self.sync_segments - 1) * SEGMENT_STEP + SEGMENT_FRAMES


def lengths(codec: CodecSpec, seconds: float = SECONDS) -> Lengths:
    """Token and sample counts for `seconds`; raises ConfigError below the 0.64 s of one Synchformer segment."""
    frames = math.floor(SYNC_FPS * seconds + 1e-6)
    if frames < SEGMENT_FRAMES:
        raise ConfigError(f"seconds={seconds}: too short; at least {SEGMENT_FRAMES / SYNC_FPS} s are needed")
    latent = math.ceil(seconds * codec.rate / codec.hop / 2 - 1e-9)
    segments = (frames - SEGMENT_FRAMES) // SEGMENT_STEP + 1
    return Lengths(
        latent=latent,
        clip=math.floor(CLIP_FPS * seconds + 1e-6),
        sync=segments * TOKENS_PER_SEGMENT,
        samples=latent * codec.hop * 2,
    )


_CODEC_16K = CodecSpec("16k", 16_000, 1024, 256, 80, 10.0, 384, 20, "bigvgan", (4, 4, 2, 2, 2, 2), (8, 8, 4, 4, 4, 4))
_CODEC_44K = CodecSpec(
    "44k",
    44_100,
    2048,
    512,
    128,
    math.e,
    512,
    40,
    "bigvgan",
    (8, 4, 2, 2, 2, 2),
    (16, 8, 4, 4, 4, 4),
    vocoder_tanh=False,
)
_CODEC_TINY = CodecSpec("tiny_16k", 16_000, 1024, 256, 80, 10.0, 32, 20, "griffin_lim")

_SYNC = SyncSpec("synchformer", size=224, width=768, depth=12, heads=12)
_SYNC_TINY = SyncSpec("tiny_16k", size=64, width=96, depth=2, heads=3)

_CLIP = ClipSpec(
    "dfn5b_vit_h_14_384",
    "ViT-H-14-378-quickgelu",
    size=384,
    image_dim=1024,
    text_dim=1024,
    image_width=1280,
    image_layers=32,
    patch=14,
)
_CLIP_TINY = ClipSpec(
    "tiny_16k", "tiny_clip", size=64, image_dim=96, text_dim=24, image_width=96, image_layers=2, patch=8
)


def _network(
    codec: CodecSpec, clip: ClipSpec, sync: SyncSpec, width: int, heads: int, joint: int, fused: int, v2: bool = False
) -> NetworkSpec:
    size = lengths(codec)
    return NetworkSpec(
        codec.latent_dim,
        clip.image_dim,
        sync.width,
        clip.text_dim,
        width,
        heads,
        joint,
        fused,
        size.latent,
        size.clip,
        size.sync,
        v2,
    )


def _released(
    name: str, codec: CodecSpec, width: int, heads: int, joint: int, fused: int, v2: bool = False
) -> ModelSpec:
    network = _network(codec, _CLIP, _SYNC, width, heads, joint, fused, v2)
    return ModelSpec(name, network, codec, _CLIP, _SYNC, licence="CC-BY-NC-4.0")


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "tiny_16k",
            _network(_CODEC_TINY, _CLIP_TINY, _SYNC_TINY, 96, 3, 2, 3),
            _CODEC_TINY,
            _CLIP_TINY,
            _SYNC_TINY,
            licence="MIT",
            guidance=3.0,
            embedded=True,
        ),
        _released("small_16k", _CODEC_16K, 448, 7, 4, 8),
        _released("small_44k", _CODEC_44K, 448, 7, 4, 8),
        _released("medium_44k", _CODEC_44K, 896, 14, 4, 8),
        _released("large_44k", _CODEC_44K, 896, 14, 7, 14),
        _released("large_44k_v2", _CODEC_44K, 896, 14, 7, 14, v2=True),
    )
}
"""Every base model by name."""

CODECS: dict[str, CodecSpec] = {spec.codec.name: spec.codec for spec in MODELS.values()}
SYNCS: dict[str, SyncSpec] = {spec.sync.name: spec.sync for spec in MODELS.values()}
CLIPS: dict[str, ClipSpec] = {spec.clip.name: spec.clip for spec in MODELS.values()}


def model_spec(name: str) -> ModelSpec:
    """The base model called `name`; raises ConfigError naming the nearest one."""
    return lookup(MODELS, name, "model")


def codec_spec(name: str) -> CodecSpec:
    """The codec called `name` (`16k`, `44k`, ...); raises ConfigError naming the nearest one."""
    return lookup(CODECS, name, "codec")


def lookup(table: dict[str, T], name: str, what: str) -> T:
    """`table[name]`; raises ConfigError with the nearest key and all of them."""
    if name in table:
        return table[name]
    nearest = difflib.get_close_matches(name, table, n=1, cutoff=0.0)
    raise ConfigError(f"{what}={name!r}: unknown; did you mean {nearest[0]!r}? There are: {', '.join(table)}")
