"""Clips without a caption: the network's learned empty-text features replace CLIP's features of an empty string.

K clips, B rows of them, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmaudio.data.feature_set import Features, FeatureSet, build_feature_set


def fill_empty_captions(features: FeatureSet, empty_text: Tensor) -> FeatureSet:
    """`features` with `empty_text` (L, text width) as the text features of every clip whose caption is empty."""
    is_empty = empty_caption_mask(features.captions).to(features.text_features.device)
    if not is_empty.any():
        return features
    return build_feature_set(fill_text_features(features, is_empty, empty_text), features.clips, features.model)


def empty_caption_mask(captions: Sequence[str]) -> Tensor:
    """Which captions are empty: (K,) bool."""
    return torch.tensor([not caption for caption in captions])


def fill_text_features(features: Features, is_empty: Tensor, empty_text: Tensor) -> Features:
    """`features` with `empty_text` (L, text width) as the text features where `is_empty` (B,) is true."""
    replacement = empty_text.detach().to(features.text_features)
    filled = torch.where(is_empty[:, None, None], replacement, features.text_features)
    return replace(features, text_features=filled)
