"""The frozen encoders of one model together: picture, words and sound to what the network reads.

Legend: B clips, V CLIP frames, T frames at 25 fps, S sync tokens, L text tokens, N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmaudio import weights
from mmaudio.data.features import encoder_names
from mmaudio.data.video import Grid, probe, read_windows
from mmaudio.features.clip import ClipEncoder, build_clip
from mmaudio.features.mel import MelSpectrogram, build_mel
from mmaudio.features.synchformer import Synchformer, build_synchformer, segments
from mmaudio.features.vae import VAE, Posterior, build_vae
from mmaudio.model.spec import CLIP_FPS, SYNC_FPS, ModelSpec, lengths, model_spec

PARTS = {"codec": "vae", "clip": "clip", "sync": "synchformer"}
"""The weights file of each encoder."""


@dataclass(frozen=True)
class Encoders:
    """Mel and VAE, CLIP, Synchformer; on a GPU the transformers run in bfloat16, all else in float32."""

    spec: ModelSpec
    mel: MelSpectrogram
    vae: VAE
    clip: ClipEncoder
    sync: Synchformer
    device: torch.device

    def grids(self, seconds: float) -> tuple[Grid, Grid]:
        """What a window of `seconds` takes from the picture for CLIP and for Synchformer."""
        size = lengths(self.spec.codec, seconds)
        return (
            Grid(CLIP_FPS, size.clip, self.clip.preprocess),
            Grid(SYNC_FPS, size.sync_frames, self.sync.preprocess),
        )

    @torch.inference_mode()
    def frames(self, frames: Tensor) -> Tensor:
        """CLIP's preprocessed frames (V, 3, H, W) -> (V, image width), float32 on the CPU."""
        with self._autocast():
            rows = self.clip.encode_frames(frames[None].to(self.device))
        return rows[0].float().cpu()

    @torch.inference_mode()
    def motion(self, frames: Tensor) -> Tensor:
        """Synchformer's preprocessed frames (T, 3, H, W) -> (S, sync width), float32 on the CPU."""
        with self._autocast():
            tokens: Tensor = self.sync(segments(frames.to(self.device))[None])
        return tokens[0].flatten(0, 1).float().cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Captions -> (B, L, text width), float32 on the CPU."""
        with self._autocast():
            tokens = self.clip.encode_text(texts)
        return tokens.float().cpu()

    @torch.inference_mode()
    def sound(self, waveforms: Tensor) -> Posterior:
        """Samples (B, samples) -> mean and std of the latents (B, N, C), float32 on the CPU, not normalised."""
        posterior = self.vae.encode(self.mel(waveforms.to(self.device)))
        return Posterior(*(part.transpose(1, 2).contiguous().cpu() for part in (posterior.mean, posterior.std)))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")


def load_encoders(model: str, folder: Path | None = None, device: torch.device | str = "cpu") -> Encoders:
    """The encoders of `model` with their weights (from `folder` first); WeightsError where a file is missing."""
    spec = model_spec(model)
    mel, vae = build_mel(spec.codec.name), build_vae(spec.codec.name)
    clip, sync = build_clip(spec.clip.name), build_synchformer(spec.sync.name)
    vae.load_released(weights.load_part(model, PARTS["codec"], folder).state)
    clip.load_released(weights.load_part(model, PARTS["clip"], folder).state)
    sync.load_released(weights.load_part(model, PARTS["sync"], folder).state)
    modules: tuple[nn.Module, ...] = (mel, vae, clip, sync)
    for module in modules:
        module.to(device).eval().requires_grad_(False)
    return Encoders(spec, mel, vae, clip, sync, torch.device(device))


def encoder_identities(model: str, folder: Path | None = None) -> dict[str, str]:
    """`name:SHA-256 of its weights` of every encoder of `model`; nothing is loaded."""
    names = encoder_names(model_spec(model))
    return {part: f"{names[part]}:{weights.identity(model, file, folder)}" for part, file in PARTS.items()}


def encode_video(path: Path | str, encoders: Encoders, seconds: float, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """CLIP and sync features, (1, V, image width) and (1, S, sync width), of `seconds` of a video from `start` on.

    Raises DataError where it is no video or ends before.
    """
    window = next(iter(read_windows(probe(path), [start], encoders.grids(seconds))))
    stills, motion = (torch.stack(frames) for frames in window.frames)
    return encoders.frames(stills)[None], encoders.motion(motion)[None]
