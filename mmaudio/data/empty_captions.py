"""Clips without a caption: the network's own row for no text stands in the place of what CLIP makes of an empty one.

K clips, B rows of them, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmaudio.data.feature_store import Features, FeatureSet, feature_set


def with_empty_text(features: FeatureSet, empty: Tensor) -> FeatureSet:
    """`features` with `empty` (L, text width) as the text features of every clip whose caption is empty."""
    missing = untitled(features.captions).to(features.text_features.device)
    if not missing.any():
        return features
    return feature_set(filled(features, missing, empty), features.clips, features.model)


def untitled(captions: Sequence[str]) -> Tensor:
    """Which captions are empty: (K,) bool."""
    return torch.tensor([not caption for caption in captions])


def filled(rows: Features, missing: Tensor, empty: Tensor) -> Features:
    """The rows with `empty` (L, text width) as the text features where `missing` (B,) says so."""
    own = empty.detach().to(rows.text_features)
    return replace(rows, text_features=torch.where(missing[:, None, None], own, rows.text_features))
