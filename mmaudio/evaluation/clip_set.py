"""A set of clips to compare, with the losses and latents of both models.

S samples of a clip, N latent tokens, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mmaudio.data.feature_set import FeatureSet
from mmaudio.metrics.metric_inputs import ADAPTED, BASE, CODEC

MODELS = (BASE, ADAPTED)
HELD_OUT, GENERAL = "held-out", "general"
"""Names of the sets: clips of the user's videos, and clips of the base model's own domain."""


@dataclass
class StrengthOutputs:
    """Outputs of the adapter at one strength, by the row of the clip."""

    latents: dict[int, Tensor]
    """(S, N, C) each."""
    losses: dict[int, float]


@dataclass
class ClipSet:
    """Clips with their features, and the outputs of both models."""

    video_root: Path
    """The folder that the clips' videos are relative to."""
    features: FeatureSet
    losses: dict[str, list[float]] = field(default_factory=dict)
    """Velocity losses of the clips by model."""
    latents: dict[str, Tensor] = field(default_factory=dict)
    """(clips, S, N, C) by model, on the codec's scale."""
    strengths: dict[float, StrengthOutputs] = field(default_factory=dict)
    """Outputs of the adapter at other strengths than 1."""
    trained_ids: frozenset[str] = frozenset()
    """Ids of the clips whose source videos were trained on."""

    @property
    def num_samples(self) -> int:
        """Samples per clip and model."""
        return self.latents[BASE].shape[1]

    def strengths_of(self, row: int) -> dict[float, StrengthOutputs]:
        """The strengths that were tried on a clip."""
        return {strength: outputs for strength, outputs in self.strengths.items() if row in outputs.latents}

    def latents_of(self, row: int) -> dict[str, Tensor]:
        """All latents of a clip by the name of the sound, (S, N, C) each; of the codec (1, N, C)."""
        latents = {CODEC: self.features.mean[row][None], **{model: self.latents[model][row] for model in MODELS}}
        tried = self.strengths_of(row).items()
        return latents | {strength_label(strength): outputs.latents[row] for strength, outputs in tried}

    def losses_of(self, row: int) -> dict[str, float]:
        """All velocity losses of a clip by the name of the sound."""
        losses = {model: self.losses[model][row] for model in MODELS}
        tried = self.strengths_of(row).items()
        return losses | {strength_label(strength): outputs.losses[row] for strength, outputs in tried}


def strength_label(strength: float) -> str:
    """Name of the adapter's sound at a strength."""
    return f"{ADAPTED} x {strength:g}"
