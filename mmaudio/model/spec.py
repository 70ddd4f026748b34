"""Registry of model specifications: codecs, visual encoders, networks, and token counts for a duration.

Source: the released checkpoints' keys and shapes (arXiv 2412.15322), and this repository's `pretrain_tiny.py`.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from typing import TypeVar

from mmaudio.errors import ConfigError

T = TypeVar("T")

CLIP_SECONDS = 8.0
"""Duration of a training clip in seconds."""
TEXT_TOKENS = 77
CLIP_FPS = 8
SYNC_FPS = 25
FRAMES_PER_SEGMENT = 16
"""Frames of one Synchformer segment."""
SEGMENT_STEP = 8
"""Frames between the starts of two segments."""
TOKENS_PER_SEGMENT = 8
MAX_SHARED_ROWS = 0.75
"""Sync tokens per latent token up to which a block computes the modulation of those that share one only once.

0.56 at 44.1 kHz, where it takes two thirds of the time on a CPU; 0.77 for 8 s at 16 kHz, where nothing is gained.
"""


@dataclass(frozen=True)
class CodecSpec:
    """Mel spectrogram, VAE and vocoder for one sample rate."""

    name: str
    sample_rate: int
    """In Hz."""
    n_fft: int
    """FFT and window length in samples."""
    hop_length: int
    """In samples."""
    n_mels: int
    log_base: float
    """10 for the common logarithm, math.e for the natural one."""
    vae_width: int
    latent_dim: int
    vocoder: str
    """`bigvgan` or `griffin_lim`."""
    upsample_rates: tuple[int, ...] = ()
    upsample_kernel_sizes: tuple[int, ...] = ()
    vocoder_width: int = 1536
    vocoder_tanh: bool = True
    """True: the last layer has a bias and is followed by tanh. False: no bias, output clamped to [-1, 1]."""

    @property
    def mel_range(self) -> tuple[float, float]:
        """Lowest and highest frequency of the mel filter bank in Hz."""
        return 0.0, self.sample_rate / 2


@dataclass(frozen=True)
class SyncSpec:
    """Synchformer's visual branch (Motionformer, divided space-time attention)."""

    name: str
    image_size: int
    """Side of a frame in pixels."""
    width: int
    depth: int
    num_heads: int
    patch_size: int = 16
    tubelet_size: int = 2
    """Frames of a patch."""

    @property
    def grid_size(self) -> int:
        """Number of patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ClipSpec:
    """A CLIP model built by open_clip."""

    name: str
    architecture: str
    """Architecture name in open_clip, or the stem of a JSON file beside the weights."""
    image_size: int
    """Side of a frame in pixels."""
    image_dim: int
    text_dim: int
    image_width: int
    """Width of the image tower."""
    image_layers: int
    patch_size: int


@dataclass(frozen=True)
class NetworkSpec:
    """The flow-matching transformer."""

    latent_dim: int
    clip_dim: int
    sync_dim: int
    text_dim: int
    width: int
    num_heads: int
    num_joint_blocks: int
    num_fused_blocks: int
    latent_tokens: int
    clip_tokens: int
    sync_tokens: int
    v2: bool = False
    text_tokens: int = TEXT_TOKENS
    mlp_ratio: int = 4


@dataclass(frozen=True)
class ModelSpec:
    """A base model: network, codec, encoders, and default sampling settings."""

    name: str
    network: NetworkSpec
    codec: CodecSpec
    clip: ClipSpec
    sync: SyncSpec
    licence: str
    guidance_scale: float = 4.5
    """Default scale of classifier-free guidance."""
    num_steps: int = 25
    """Default number of solver steps."""
    bundled: bool = False
    """Whether the weights ship with the package."""


@dataclass(frozen=True)
class Lengths:
    """Token and audio sample counts for a duration."""

    latent_tokens: int
    clip_tokens: int
    """CLIP frames, one token each."""
    sync_tokens: int
    """Synchformer tokens."""
    audio_samples: int
    """latent_tokens * hop_length * 2."""

    @property
    def sync_segments(self) -> int:
        """Number of segments of 16 frames."""
        return self.sync_tokens // TOKENS_PER_SEGMENT

    @property
    def sync_frames(self) -> int:
        """Number of frames at 25 fps that the segments cover."""
        return (self.sync_segments - 1) * SEGMENT_STEP + FRAMES_PER_SEGMENT


def modulated_rows(sync_tokens: int, latent_tokens: int) -> int:
    """Rows of a modulation that a block computes for the latent's tokens."""
    return sync_tokens if sync_tokens <= MAX_SHARED_ROWS * latent_tokens else latent_tokens


def compute_lengths(codec: CodecSpec, seconds: float = CLIP_SECONDS) -> Lengths:
    """Compute token and sample counts for `seconds`; ConfigError below the 0.64 s of one Synchformer segment."""
    sync_frames = math.floor(SYNC_FPS * seconds + 1e-6)
    if sync_frames < FRAMES_PER_SEGMENT:
        raise ConfigError(f"seconds={seconds}: too short; at least {FRAMES_PER_SEGMENT / SYNC_FPS} s are needed")
    latent_tokens = math.ceil(seconds * codec.sample_rate / codec.hop_length / 2 - 1e-9)
    segments = (sync_frames - FRAMES_PER_SEGMENT) // SEGMENT_STEP + 1
    return Lengths(
        latent_tokens=latent_tokens,
        clip_tokens=math.floor(CLIP_FPS * seconds + 1e-6),
        sync_tokens=segments * TOKENS_PER_SEGMENT,
        audio_samples=latent_tokens * codec.hop_length * 2,
    )


_CODEC_16K = CodecSpec(
    "16k",
    sample_rate=16_000,
    n_fft=1024,
    hop_length=256,
    n_mels=80,
    log_base=10.0,
    vae_width=384,
    latent_dim=20,
    vocoder="bigvgan",
    upsample_rates=(4, 4, 2, 2, 2, 2),
    upsample_kernel_sizes=(8, 8, 4, 4, 4, 4),
)
_CODEC_44K = CodecSpec(
    "44k",
    sample_rate=44_100,
    n_fft=2048,
    hop_length=512,
    n_mels=128,
    log_base=math.e,
    vae_width=512,
    latent_dim=40,
    vocoder="bigvgan",
    upsample_rates=(8, 4, 2, 2, 2, 2),
    upsample_kernel_sizes=(16, 8, 4, 4, 4, 4),
    vocoder_tanh=False,
)
_CODEC_TINY = replace(
    _CODEC_16K,
    name="tiny_16k",
    vae_width=32,
    vocoder="griffin_lim",
    upsample_rates=(),
    upsample_kernel_sizes=(),
)

_SYNC = SyncSpec("synchformer", image_size=224, width=768, depth=12, num_heads=12)
_SYNC_TINY = SyncSpec("tiny_16k", image_size=64, width=96, depth=2, num_heads=3)

_CLIP = ClipSpec(
    "dfn5b_vit_h_14_384",
    "ViT-H-14-378-quickgelu",
    image_size=384,
    image_dim=1024,
    text_dim=1024,
    image_width=1280,
    image_layers=32,
    patch_size=14,
)
_CLIP_TINY = ClipSpec(
    "tiny_16k", "tiny_clip", image_size=64, image_dim=96, text_dim=24, image_width=96, image_layers=2, patch_size=8
)


def _network(
    codec: CodecSpec, clip: ClipSpec, sync: SyncSpec, *, width: int, num_heads: int, blocks: tuple[int, int], v2: bool
) -> NetworkSpec:
    """The network of a model, with the token counts for CLIP_SECONDS; `blocks` are its joint and fused blocks."""
    lengths = compute_lengths(codec)
    return NetworkSpec(
        latent_dim=codec.latent_dim,
        clip_dim=clip.image_dim,
        sync_dim=sync.width,
        text_dim=clip.text_dim,
        width=width,
        num_heads=num_heads,
        num_joint_blocks=blocks[0],
        num_fused_blocks=blocks[1],
        latent_tokens=lengths.latent_tokens,
        clip_tokens=lengths.clip_tokens,
        sync_tokens=lengths.sync_tokens,
        v2=v2,
    )


def _released(
    name: str, codec: CodecSpec, width: int, num_heads: int, blocks: tuple[int, int], v2: bool = False
) -> ModelSpec:
    """A released model, all of which share the encoders and the licence."""
    network = _network(codec, _CLIP, _SYNC, width=width, num_heads=num_heads, blocks=blocks, v2=v2)
    return ModelSpec(name, network, codec, _CLIP, _SYNC, licence="CC-BY-NC-4.0")


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "tiny_16k",
            _network(_CODEC_TINY, _CLIP_TINY, _SYNC_TINY, width=96, num_heads=3, blocks=(2, 3), v2=False),
            _CODEC_TINY,
            _CLIP_TINY,
            _SYNC_TINY,
            licence="MIT",
            guidance_scale=3.0,
            bundled=True,
        ),
        _released("small_16k", _CODEC_16K, width=448, num_heads=7, blocks=(4, 8)),
        _released("small_44k", _CODEC_44K, width=448, num_heads=7, blocks=(4, 8)),
        _released("medium_44k", _CODEC_44K, width=896, num_heads=14, blocks=(4, 8)),
        _released("large_44k", _CODEC_44K, width=896, num_heads=14, blocks=(7, 14)),
        _released("large_44k_v2", _CODEC_44K, width=896, num_heads=14, blocks=(7, 14), v2=True),
    )
}
"""Every base model by name; another model is one more entry."""

CODECS: dict[str, CodecSpec] = {spec.codec.name: spec.codec for spec in MODELS.values()}
SYNC_ENCODERS: dict[str, SyncSpec] = {spec.sync.name: spec.sync for spec in MODELS.values()}
CLIP_ENCODERS: dict[str, ClipSpec] = {spec.clip.name: spec.clip for spec in MODELS.values()}


def model_spec(name: str) -> ModelSpec:
    """Look up the base model `name`; ConfigError with the nearest name."""
    return lookup(MODELS, name, "model")


def codec_spec(name: str) -> CodecSpec:
    """Look up the codec `name` (`16k`, `44k`, ...); ConfigError with the nearest name."""
    return lookup(CODECS, name, "codec")


def lookup(registry: dict[str, T], name: str, kind: str) -> T:
    """Look up `registry[name]`; ConfigError with the nearest name and all names."""
    if name in registry:
        return registry[name]
    nearest = difflib.get_close_matches(name, registry, n=1, cutoff=0.0)
    raise ConfigError(f"{kind}={name!r}: unknown; did you mean {nearest[0]!r}? There are: {', '.join(registry)}")
