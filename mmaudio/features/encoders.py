"""The frozen encoders of one model: CLIP and Synchformer for video, CLIP for text, mel and VAE for audio.

Legend: B clips, V CLIP frames, T frames at 25 fps, S sync tokens, L text tokens, N latent tokens, C latent channels,
E image width, W text width, D sync width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor

from mmaudio.data.feature_store import encoder_names
from mmaudio.errors import ConfigError
from mmaudio.features import clip, synchformer
from mmaudio.features.auto_batch import AutoBatcher
from mmaudio.features.clip import ClipEncoder, build_clip
from mmaudio.features.mel import MelSpectrogram, build_mel
from mmaudio.features.synchformer import Synchformer, build_synchformer, split_segments
from mmaudio.features.vae import VAE, Posterior, build_vae
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.streams import DEFAULT_STREAMS, StreamChoice
from mmaudio.media.video import probe
from mmaudio.model.spec import CLIP_FPS, SYNC_FPS, ModelSpec, compute_lengths, model_spec
from mmaudio.model.state_dict import ReleasedModule
from mmaudio.weights import store as weights
from mmaudio.weights.load_frozen import load_frozen

ENCODER_COMPONENTS = {"codec": "vae", "clip": "clip", "sync": "synchformer"}
"""The model's component that holds each encoder's weights."""
CONDITION_ENCODERS = ("clip", "sync")
"""The encoders of the conditions: generation needs these alone."""

M = TypeVar("M", bound=ReleasedModule)


@dataclass(frozen=True)
class Encoders:
    """Mel and VAE, CLIP, Synchformer, or some of them, each with automatic batch sizes.

    The transformers compute in `dtype`, the codec in float32. A method whose encoder was not loaded raises ConfigError.
    """

    spec: ModelSpec
    device: torch.device
    mel: MelSpectrogram
    vae: VAE | None = None
    """With its encoder alone."""
    clip: ClipEncoder | None = None
    sync: Synchformer | None = None
    text_cache: dict[str, Tensor] = field(default_factory=dict)
    """Features (L, W) of texts that were encoded before the text tower was dropped."""
    dtype: torch.dtype = torch.float32
    batchers: defaultdict[str, AutoBatcher] = field(init=False)
    """By encoder."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "batchers", defaultdict(lambda: AutoBatcher(self.device)))

    def frame_grids(self, seconds: float) -> tuple[FrameGrid, FrameGrid]:
        """The frames of a window of `seconds` for CLIP and for Synchformer: frame rate, count and resizing."""
        lengths = compute_lengths(self.spec.codec, seconds)
        return (
            FrameGrid(CLIP_FPS, lengths.clip_tokens, _require(self.clip, "clip").resize),
            FrameGrid(SYNC_FPS, lengths.sync_frames, _require(self.sync, "sync").resize),
        )

    @torch.inference_mode()
    def encode_clip_frames(self, frames: Tensor) -> Tensor:
        """CLIP's resized frames, uint8 (V, 3, H, W) -> (V, E), float32 on the CPU."""
        encoder = _require(self.clip, "clip")

        def encode(batch: Tensor) -> Tensor:
            """CLIP's features (B, E) of a batch of frames."""
            with self._autocast():
                return encoder.encode_frames(clip.normalize_frames(batch.to(self.device))[None])[0].float()

        return self.batchers["clip"].run(encode, self._send(frames))

    def encode_picture(self, picture: Tensor) -> Tensor:
        """A still, RGB uint8 (3, H, W), of any size -> (1, E), float32 on the CPU."""
        return self.encode_clip_frames(_require(self.clip, "clip").resize(picture[None]))

    def encode_sync_frames(self, frames: Tensor) -> Tensor:
        """Synchformer's resized frames of one clip, uint8 (T, 3, H, W) -> (S, D), float32 on the CPU."""
        return self.encode_sync_clips([frames])[0]

    @torch.inference_mode()
    def encode_sync_clips(self, clips: Sequence[Tensor]) -> Tensor:
        """Synchformer's resized frames of B clips of one length, uint8 (T, 3, H, W) each -> (B, S, D)."""
        encoder = _require(self.sync, "sync")

        def encode(batch: Tensor) -> Tensor:
            """Synchformer's features of a batch of segments."""
            with self._autocast():
                tokens: Tensor = encoder(synchformer.normalize_frames(batch.to(self.device))[None])
            return tokens[0].float()

        segments = torch.cat([split_segments(self._send(frames)) for frames in clips])
        tokens = self.batchers["sync"].run(encode, segments)
        return rearrange(tokens, "(b s) t d -> b (s t) d", b=len(clips))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, L, W), float32 on the CPU."""
        if texts and all(text in self.text_cache for text in texts):
            return torch.stack([self.text_cache[text] for text in texts])
        with self._autocast():
            tokens = _require(self.clip, "clip").encode_text(texts)
        return tokens.float().cpu()

    def drop_text_tower(self, texts: Iterable[str] = ()) -> None:
        """Encode `texts`, then drop CLIP's text tower: other texts raise ConfigError from then on."""
        self.text_cache.update({text: self.encode_texts([text])[0] for text in texts})
        _require(self.clip, "clip").drop_text()

    @torch.inference_mode()
    def encode_audio(self, waveforms: Tensor) -> Posterior:
        """Waveforms (B, samples) -> mean and std of the latents (B, N, C), float32 on the CPU, not normalised."""
        vae = _require(self.vae, "codec")

        def encode(batch: Tensor) -> Tensor:
            """Mean and std (B, 2, N, C) of a batch of waveforms."""
            posterior = vae.encode(self.mel(batch.to(self.device)))
            return torch.stack([posterior.mean, posterior.std], dim=1).transpose(2, 3).contiguous()

        mean, std = self.batchers["codec"].run(encode, waveforms).unbind(1)
        return Posterior(mean, std)

    def _send(self, frames: Tensor) -> Tensor:
        """Frames as bytes on the device: on a GPU each is copied once, while what was sent before is computed."""
        return frames.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else frames

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def load_encoders(
    model: str,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    names: Collection[str] = tuple(ENCODER_COMPONENTS),
    dtype: torch.dtype | None = None,
) -> Encoders:
    """Load the encoders `names` of `model`, with weights from `folder` first; WeightsError for a missing file.

    `dtype`: of the transformers, float32 or bfloat16; None: bfloat16 on a GPU, else float32.
    """
    spec = model_spec(model)

    def load(name: str, build: Callable[[], M]) -> M | None:
        """An encoder with its weights; None where it is not asked for."""
        return load_frozen(build, model, ENCODER_COMPONENTS[name], folder, device) if name in names else None

    return Encoders(
        spec,
        torch.device(device),
        build_mel(spec.codec.name).to(device),
        load("codec", lambda: build_vae(spec.codec.name, drop_decoder=True)),
        load("clip", lambda: build_clip(spec.clip.name)),
        load("sync", lambda: build_synchformer(spec.sync.name)),
        dtype=dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32),
    )


def _require(encoder: M | None, name: str) -> M:
    if encoder is None:
        raise ConfigError(f"these encoders were loaded without {name!r}; name it in load_encoders(names=...)")
    return encoder


def encoder_identities(model: str, folder: Path | None = None) -> dict[str, str]:
    """`name:SHA-256 of its weights` of every encoder of `model`; nothing is loaded."""
    names = encoder_names(model_spec(model))
    return {
        encoder: f"{names[encoder]}:{weights.component_sha256(model, component, folder)}"
        for encoder, component in ENCODER_COMPONENTS.items()
    }


def encode_video(
    path: Path | str,
    encoders: Encoders,
    seconds: float,
    start: float = 0.0,
    streams: StreamChoice = DEFAULT_STREAMS,
) -> tuple[Tensor, Tensor]:
    """Encode `seconds` of a video from `start` on: CLIP features (1, V, E) and sync features (1, S, D).

    Raises DataError where the file is no video or ends before.
    """
    window = next(iter(read_frame_windows(probe(path, streams), [start], encoders.frame_grids(seconds))))
    clip_frames, sync_frames = (torch.stack(frames) for frames in window.frames)
    return encoders.encode_clip_frames(clip_frames)[None], encoders.encode_sync_frames(sync_frames)[None]
