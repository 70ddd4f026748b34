"""Clips without a caption train with the network's learned empty-text features."""

from __future__ import annotations

from dataclasses import replace

import mini_training
import torch
from helpers import mini

from mmaudio.data.empty_captions import fill_empty_captions
from mmaudio.data.feature_set import build_feature_set
from mmaudio.finetune.dataset import build_dataset


def half_captioned():
    """Four clips, of which the first and the third have no caption."""
    features = mini_training.mini_clips(4, videos=2)
    clips = [replace(clip, caption="" if number % 2 == 0 else "rain") for number, clip in enumerate(features.clips)]
    return build_feature_set(features, clips, features.model)


def test_only_empty_captions_get_the_empty_text_features():
    features = half_captioned()
    empty_text = torch.full(features.text_features.shape[1:], 7.0)
    changed = fill_empty_captions(features, empty_text)
    assert (changed.text_features[[0, 2]] == 7).all()
    assert torch.equal(changed.text_features[[1, 3]], features.text_features[[1, 3]])
    assert torch.equal(changed.mean, features.mean) and changed.clips == features.clips
    captioned = mini_training.mini_clips(4, videos=2)
    assert fill_empty_captions(captioned, empty_text) is captioned


def matches_dropped_text(network, clips):
    """Of every clip, whether its text conditions are those of a dropped text."""
    index, none = torch.arange(4), torch.zeros(4, dtype=torch.bool)
    conditions = clips.conditions(network, index, none, none)
    dropped = clips.conditions(network, index, none, torch.ones(4, dtype=torch.bool))
    return [torch.allclose(a, b, atol=1e-6) for a, b in zip(conditions.text_f, dropped.text_f, strict=True)]


def test_training_treats_an_empty_caption_as_dropped_text():
    network = mini().requires_grad_(False)
    clips = build_dataset(network, half_captioned(), torch.device("cpu"))
    assert clips.projected is not None and matches_dropped_text(network, clips) == [True, False, True, False]


def test_an_empty_caption_follows_trained_empty_text_features():
    network = mini()
    clips = build_dataset(network, half_captioned(), torch.device("cpu"))
    network.empty_string_feat.data += 1.0
    assert clips.projected is None and matches_dropped_text(network, clips) == [True, False, True, False]
