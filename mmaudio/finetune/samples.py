"""Sound and mel pictures of a few fixed held-out clips: ground truth, base and adapted, with the same noise.

B clips, N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from torch import Tensor

from mmaudio.data.features import FeatureSet
from mmaudio.finetune.state import TrainState
from mmaudio.generation.sampler import Sampler
from mmaudio.model.lora import set_strength

GAP = 4
"""Pixels between two spectrograms."""


@dataclass(frozen=True)
class Shown:
    """One clip's pictures and sounds."""

    name: str
    picture: npt.NDArray[np.uint8]
    """Three mel spectrograms, one above the other (H, W, 3)."""
    waveforms: dict[str, Tensor]
    """`truth` (the codec's view of it), `base`, `adapted`: (samples,)."""


@dataclass(frozen=True)
class Samples:
    """The clips to show and the sampler to generate them with, around the network in training."""

    sampler: Sampler
    clips: FeatureSet

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self.sampler.spec.codec.rate

    def draw(self, state: TrainState) -> Iterator[Shown]:
        """Generate every clip without and with the adapter (its running average where there is one)."""
        state.model.eval()
        with state.averaged():
            latents = {
                "truth": self.clips.mean,
                "base": self._latents(state, 0.0),
                "adapted": self._latents(state, 1.0),
            }
        for number, name in enumerate(self.clips.ids):
            own = {kind: rows[number : number + 1] for kind, rows in latents.items()}
            picture = mel_picture([self.sampler.mel(latent)[0] for latent in own.values()])
            waveforms = {kind: self.sampler.decode(latent)[0].cpu() for kind, latent in own.items()}
            yield Shown(name, picture, waveforms)

    def _latents(self, state: TrainState, strength: float) -> Tensor:
        clips = self.clips
        set_strength(state.model, strength)
        try:
            noise = self.sampler.noise(range(len(clips)))
            return self.sampler.latents(clips.clip_features, clips.sync_features, clips.text_features, noise)
        finally:
            set_strength(state.model, 1.0)


def mel_picture(mels: list[Tensor]) -> npt.NDArray[np.uint8]:
    """Spectrograms (mels, frames) one above the other on the first one's scale, low frequencies at the bottom."""
    low, high = float(mels[0].min()), float(mels[0].max())
    rows = []
    for mel in mels:
        scaled = ((mel.float().cpu() - low) / max(high - low, 1e-6)).clamp(0, 1).flip(0)
        rows += [colormaps["magma"](scaled.numpy())[..., :3], np.ones((GAP, mel.shape[1], 3))]
    return (np.concatenate(rows[:-1]) * 255).astype(np.uint8)
