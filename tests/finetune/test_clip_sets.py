"""Training and validation clips of a configuration."""

import mini_training
import pytest
import torch
from memmap_set import write_memmap_set

from mmaudio.errors import DataError
from mmaudio.finetune.clip_sets import load_clip_sets, split_by_video


def test_split_by_video_keeps_every_clip():
    train, held_out = mini_training.mini_clips(8, videos=4), mini_training.mini_clips(4, "val", videos=2)
    first, second = split_by_video(train, held_out, 0.34)
    assert not set(first.videos) & set(second.videos) and len(set(second.videos)) == 2
    assert sorted(first.ids + second.ids) == sorted(train.ids + held_out.ids)
    source = {name: row for clips in (train, held_out) for name, row in zip(clips.ids, clips.mean, strict=True)}
    for clips in (first, second):
        assert all(torch.equal(row, source[name]) for name, row in zip(clips.ids, clips.load().mean, strict=True))


def test_test_clips_used_for_validation_stay_out_of_the_split():
    train, stand_in = mini_training.mini_clips(6, videos=3), mini_training.mini_clips(2, "test", videos=1)
    first, second = split_by_video(train, stand_in, 0.1)
    assert sorted(first.ids + second.ids) == sorted(train.ids) and len(set(second.videos)) == 1


def test_one_video_cannot_be_split():
    with pytest.raises(DataError, match="one source video"):
        split_by_video(mini_training.mini_clips(3, videos=1), mini_training.mini_clips(1, "test"), 0.5)


def test_a_table_without_held_out_clips_can_be_split_by_training(tmp_path):
    write_memmap_set(tmp_path / "vgg-train", 4, "tiny_16k", 4)
    config = mini_training.build_config(tmp_path, custom_finetune=False, features_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"no val clip.*split_ratio=0.2 holds.*validation.enabled=false"):
        load_clip_sets(config)
    config.validation.split_ratio = 0.5
    train, held_out = load_clip_sets(config)
    assert len(train) == len(held_out) == 2 and not set(train.ids) & set(held_out.ids)


def test_absent_features_are_named(tmp_path):
    config = mini_training.build_config(tmp_path, clips_tsv=str(tmp_path / "clips.tsv"))
    with pytest.raises(DataError, match=r"clips\.tsv: not there"):
        load_clip_sets(config)


def test_features_of_the_reference_extraction_can_be_trained_on(tmp_path):
    written = {
        split: write_memmap_set(tmp_path / f"vgg-{split}", count, "tiny_16k", count)
        for split, count in (("train", 3), ("val", 2))
    }
    config = mini_training.build_config(
        tmp_path, custom_finetune=False, features_dir=str(tmp_path), clips_tsv="none.tsv"
    )
    train, held_out = load_clip_sets(config)
    assert torch.equal(train.load().mean, written["train"]["mean"])
    assert torch.equal(held_out.load().std, written["val"]["std"])
    assert (train.captions[2], held_out.ids) == ("a sound, number 2", ["vgg-val0", "vgg-val1"])
    config.features_dir = str(tmp_path / "none")
    with pytest.raises(DataError, match="no memory map in it"):
        load_clip_sets(config)
