"""Clips without a caption: the network's own row for no text stands in the place of what CLIP makes of an empty one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmaudio.data.features import FeatureSet


def with_empty_text(features: FeatureSet, empty: Tensor) -> FeatureSet:
    """`features` with `empty` (L, text width) as the text features of every clip whose caption is empty."""
    untitled = torch.tensor([not caption for caption in features.captions], device=features.text_features.device)
    if not untitled.any():
        return features
    row = empty.detach().to(features.text_features)
    return replace(features, text_features=torch.where(untitled[:, None, None], row, features.text_features))
