"""Clips without a caption train with the network's own row for no text."""

from __future__ import annotations

from dataclasses import replace

import small_world
import torch

from mmaudio.data.empty_captions import with_empty_text
from mmaudio.data.feature_store import feature_set
from mmaudio.finetune.dataset import material


def half_titled():
    """Four clips, of which the first and the third have no caption."""
    features = small_world.clips(4, videos=2)
    rows = [replace(clip, caption="" if number % 2 == 0 else "rain") for number, clip in enumerate(features.clips)]
    return feature_set(features, rows, features.model)


def test_empty_captions_get_the_empty_row_and_others_keep_theirs():
    features = half_titled()
    empty = torch.full(features.text_features.shape[1:], 7.0)
    changed = with_empty_text(features, empty)
    assert (changed.text_features[[0, 2]] == 7).all()
    assert torch.equal(changed.text_features[[1, 3]], features.text_features[[1, 3]])
    assert torch.equal(changed.mean, features.mean) and changed.clips == features.clips
    titled = small_world.clips(4, videos=2)
    assert with_empty_text(titled, empty) is titled


def untitled_as_dropped(network, clips):
    """Of every clip, whether its text conditions are those of a dropped text."""
    index, no = torch.arange(4), torch.zeros(4, dtype=torch.bool)
    stated = clips.conditions(network, index, no, no)
    dropped = clips.conditions(network, index, no, torch.ones(4, dtype=torch.bool))
    return [torch.allclose(a, b, atol=1e-6) for a, b in zip(stated.text_f, dropped.text_f, strict=True)]


def test_training_sees_an_empty_caption_as_no_text():
    network = small_world.mini().requires_grad_(False)
    clips = material(network, half_titled(), torch.device("cpu"))
    assert clips.projected is not None and untitled_as_dropped(network, clips) == [True, False, True, False]


def test_where_the_row_for_no_text_is_trained_an_empty_caption_follows_it():
    network = small_world.mini()
    clips = material(network, half_titled(), torch.device("cpu"))
    network.empty_string_feat.data += 1.0
    assert clips.projected is None and untitled_as_dropped(network, clips) == [True, False, True, False]
