"""Which clips train and which are held out."""

import pytest
import small_world
import torch
from test_mmaudio_memmap import write_set

from mmaudio.errors import DataError
from mmaudio.finetune.dataset import load_data, split_anew


def test_splitting_anew_is_by_video_and_loses_nothing():
    train, held = small_world.clips(8, videos=4), small_world.clips(4, "val", videos=2)
    first, second = split_anew(train, held, 0.34)
    assert not set(first.videos) & set(second.videos) and len(set(second.videos)) == 2
    assert sorted(first.ids + second.ids) == sorted(train.ids + held.ids)
    source = {name: row for part in (train, held) for name, row in zip(part.ids, part.mean, strict=True)}
    for part in (first, second):
        assert all(torch.equal(row, source[name]) for name, row in zip(part.ids, part.load().mean, strict=True))


def test_test_clips_that_stand_in_stay_out():
    train, stand_in = small_world.clips(6, videos=3), small_world.clips(2, "test", videos=1)
    first, second = split_anew(train, stand_in, 0.1)
    assert sorted(first.ids + second.ids) == sorted(train.ids) and len(set(second.videos)) == 1


def test_one_video_cannot_be_split():
    with pytest.raises(DataError, match="one source video"):
        split_anew(small_world.clips(3, videos=1), small_world.clips(1, "test"), 0.5)


def test_a_table_without_held_out_clips_can_be_split_by_training(tmp_path):
    write_set(tmp_path / "vgg-train", 4, "tiny_16k", 4)
    config = small_world.config(tmp_path, custom_finetune=False, features_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"no val clip.*split_ratio=0.2 holds.*validation.enabled=false"):
        load_data(config)
    config.validation.split_ratio = 0.5
    train, held = load_data(config)
    assert len(train) == len(held) == 2 and not set(train.ids) & set(held.ids)


def test_absent_features_are_named(tmp_path):
    config = small_world.config(tmp_path, clips_tsv=str(tmp_path / "clips.tsv"))
    with pytest.raises(DataError, match=r"clips\.tsv: not there"):
        load_data(config)


def test_features_of_the_reference_stand_in_for_ones_own(tmp_path):
    written = {
        split: write_set(tmp_path / f"vgg-{split}", count, "tiny_16k", count)
        for split, count in (("train", 3), ("val", 2))
    }
    config = small_world.config(tmp_path, custom_finetune=False, features_dir=str(tmp_path), clips_tsv="none.tsv")
    train, held = load_data(config)
    assert torch.equal(train.load().mean, written["train"]["mean"])
    assert torch.equal(held.load().std, written["val"]["std"])
    assert (train.captions[2], held.ids) == ("a sound, number 2", ["vgg-val0", "vgg-val1"])
    config.features_dir = str(tmp_path / "none")
    with pytest.raises(DataError, match="no memory map in it"):
        load_data(config)
