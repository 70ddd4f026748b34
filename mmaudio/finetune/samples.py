"""A few fixed held-out clips as sounds, mel pictures and videos: ground truth, base and adapted, with the same noise.

B clips, N latent tokens, C latent channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from mmaudio.data.clips import Clip
from mmaudio.data.empty_captions import with_empty_text
from mmaudio.data.feature_store import FeatureSet
from mmaudio.finetune.state import TrainState
from mmaudio.generation.sampler import Sampler
from mmaudio.media.audio_file import write_sound
from mmaudio.media.frame_windows import Grid, read_windows
from mmaudio.media.mux import mux_audio, write_video
from mmaudio.media.video import probe

GAP = 4
"""Pixels between two spectrograms."""
FPS = 10
"""Of the videos."""
SIDE = 320
"""Their longest side in pixels."""


@dataclass(frozen=True)
class Shown:
    """One clip's pictures and sounds."""

    clip: Clip
    picture: npt.NDArray[np.uint8]
    """Three mel spectrograms, one above the other (H, W, 3)."""
    waveforms: dict[str, Tensor]
    """`truth` (the codec's view of it), `base`, `adapted`: (samples,)."""

    @property
    def name(self) -> str:
        """The clip's id."""
        return self.clip.id


@dataclass(frozen=True)
class Samples:
    """The clips to show and the sampler to generate them with, around the network in training."""

    sampler: Sampler
    clips: FeatureSet
    videos: Path | None = None
    """The folder of source videos; None: sounds and pictures alone."""

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.sampler.spec.codec.rate

    def draw(self, state: TrainState) -> Iterator[Shown]:
        """Generate every clip without and with the adapter (its running average where there is one)."""
        state.model.eval()
        latents = {"truth": self.clips.mean}
        with state.without_adapter():
            latents["base"] = self._latents()
        with state.averaged():
            latents["adapted"] = self._latents()
        for number, clip in enumerate(self.clips.clips):
            own = {kind: rows[number : number + 1] for kind, rows in latents.items()}
            picture = mel_picture([self.sampler.mel(latent)[0] for latent in own.values()])
            waveforms = {kind: self.sampler.decode(latent)[0].cpu() for kind, latent in own.items()}
            yield Shown(clip, picture, waveforms)

    def _latents(self) -> Tensor:
        clips = with_empty_text(self.clips, self.sampler.network.empty_text(1)[0])
        noise = self.sampler.noise(range(len(clips)))
        return self.sampler.latents(clips.clip_features, clips.sync_features, clips.text_features, noise)

    def write(self, shown: Shown, folder: Path, step: int) -> None:
        """Write `folder/CLIP/`: truth and base (once) and step-NNNNNN, as .flac and .mp4, and the picture as .png.

        Raises DataError where the source video cannot be read.
        """
        place = folder / re.sub(r"[^\w.-]+", "_", shown.name)
        place.mkdir(parents=True, exist_ok=True)
        new = f"step-{step:06d}"
        Image.fromarray(shown.picture).save(place / f"{new}.png")
        sounds = {new if kind == "adapted" else kind: waveform for kind, waveform in shown.waveforms.items()}
        for name, waveform in sounds.items():
            if name == new or not (place / f"{name}.flac").exists():
                write_sound(place / f"{name}.flac", waveform.numpy(), self.rate)
        if self.videos is not None:
            self._write_films(shown.clip, sounds, place, new)

    def _write_films(self, clip: Clip, sounds: dict[str, Tensor], place: Path, new: str) -> None:
        """The same picture with every sound: encoded once, then copied."""
        assert self.videos is not None
        truth = place / "truth.mp4"
        if not truth.exists():
            write_film(self.videos, clip, sounds["truth"], self.rate, truth)
        for name, waveform in sounds.items():
            if name == new or not (place / f"{name}.mp4").exists():
                mux_audio(truth, waveform.numpy(), self.rate, place / f"{name}.mp4")


def write_film(videos: Path, clip: Clip, waveform: Tensor, rate: int, path: Path) -> None:
    """Write the clip's picture, small, with a sound (samples,); DataError where it cannot be read."""
    grid = Grid(FPS, round((clip.end - clip.start) * FPS), _shrink)
    window = next(read_windows(probe(videos / clip.video), [clip.start], [grid]))
    frames = (frame.permute(1, 2, 0).contiguous().numpy() for frame in window.frames[0])
    write_video(path, frames, FPS, waveform.numpy(), rate)


def _shrink(frames: Tensor) -> Tensor:
    """RGB uint8 (1, 3, H, W) with no side above SIDE, both even."""
    scale = min(1.0, SIDE / max(frames.shape[-2:]))
    size = [max(2, 2 * round(side * scale / 2)) for side in frames.shape[-2:]]
    resized = F.interpolate(frames.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).byte()


def mel_picture(mels: list[Tensor]) -> npt.NDArray[np.uint8]:
    """Spectrograms (mels, frames) one above the other on the first one's scale, low frequencies at the bottom."""
    low, high = float(mels[0].min()), float(mels[0].max())
    rows = []
    for mel in mels:
        scaled = ((mel.float().cpu() - low) / max(high - low, 1e-6)).clamp(0, 1).flip(0)
        rows += [colormaps["magma"](scaled.numpy())[..., :3], np.ones((GAP, mel.shape[1], 3))]
    return (np.concatenate(rows[:-1]) * 255).astype(np.uint8)
