"""Generic captions: the model's own where it has some (`assets/MODEL/captions.txt`), else those for every model.

One in HELD_BACK_EVERY is held back from training that preserves the base (`preserve_base`), and an evaluation measures
on these alone what an adapter changes: no sound is measured that training was held to.

R captions, N latent tokens, C latent channels, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmaudio.data.clips import Clip
from mmaudio.data.feature_set import Features, FeatureSet, build_feature_set
from mmaudio.model.networks import MMAudio
from mmaudio.weights import store as weights

CAPTIONS_FILE = "captions.txt"
HELD_BACK_EVERY = 5
"""Of so many captions in a row, the last is held back from training."""


def read_captions(model: str) -> list[str]:
    """All generic captions for a model."""
    specific = weights.ASSETS / model / CAPTIONS_FILE
    path = specific if specific.is_file() else weights.ASSETS / CAPTIONS_FILE
    return path.read_text(encoding="utf-8").splitlines()


def training_captions(model: str) -> list[str]:
    """The captions at which training may hold an adapter to the base."""
    return [caption for number, caption in enumerate(read_captions(model), 1) if number % HELD_BACK_EVERY]


def held_back_captions(model: str) -> list[str]:
    """The captions that no training sees."""
    return read_captions(model)[HELD_BACK_EVERY - 1 :: HELD_BACK_EVERY]


def build_text_set(
    network: MMAudio, text_features: Tensor, latents: Tensor, captions: Sequence[str], seconds: float, model: str
) -> FeatureSet:
    """Clips of `seconds` without a video, of the captions: text features (R, L, D), latents (R, N, C).

    Their video features are the network's learned empty ones.
    """
    clip_f, sync_f = (
        row.detach().cpu().expand(len(captions), -1, -1) for row in (network.empty_clip(1), network.empty_sync(1))
    )
    features = Features(latents, torch.zeros_like(latents), clip_f, sync_f, text_features)
    clips = [
        Clip(f"base_{number:03d}", "", 0.0, seconds, caption, "train", 0.0, 0.0, 0.0)
        for number, caption in enumerate(captions)
    ]
    return build_feature_set(features, clips, model)
