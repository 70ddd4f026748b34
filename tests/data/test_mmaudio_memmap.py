"""Features of the public reference's extraction: what the real tensordict package writes is read without it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from memmap_set import write_memmap_set

from mmaudio.data.feature_set import FEATURE_NAMES
from mmaudio.data.mmaudio_memmap import load_memmap
from mmaudio.errors import DataError


def test_sets_are_named_after_their_splits(tmp_path):
    written = {
        split: write_memmap_set(tmp_path / f"vgg-{split}", count, seed=count)
        for split, count in (("train", 3), ("val", 2))
    }
    for split, tensors in written.items():
        loaded = load_memmap(tmp_path, split, "small_16k")
        assert loaded.ids == [f"vgg-{split}{number}" for number in range(len(tensors["mean"]))]
        assert loaded.captions[1] == "a sound, number 1"
        assert (loaded.seconds, loaded.model, {clip.split for clip in loaded.clips}) == (8.0, "small_16k", {split})
        for name in FEATURE_NAMES:
            assert torch.equal(getattr(loaded, name), tensors[name])
            assert getattr(loaded, name).dtype == torch.float32
    assert load_memmap(tmp_path, "test", "small_16k").ids == ["vgg-val0", "vgg-val1"]
    assert load_memmap(tmp_path / "vgg-train", "train", "small_16k").ids == loaded_ids(3)


def loaded_ids(count):
    return [f"vgg-train{number}" for number in range(count)]


@pytest.mark.slow
def test_one_set_without_a_split_holds_out_a_tenth_by_id(tmp_path):
    write_memmap_set(tmp_path / "mine", 40, label="caption")
    train, val = (load_memmap(tmp_path / "mine", split, "small_16k") for split in ("train", "val"))
    assert (len(train), len(val)) == (36, 4)
    assert not set(train.ids) & set(val.ids)
    assert load_memmap(tmp_path, "train", "small_16k").ids == train.ids
    shutil.rmtree(tmp_path / "mine")
    write_memmap_set(tmp_path / "mine", 5, label="caption")
    assert len(load_memmap(tmp_path / "mine", "val", "small_16k")) == 1


def test_windows_of_one_source_are_held_out_together(tmp_path):
    write_memmap_set(tmp_path / "mine", 40, label="caption")
    rows = [f"video{n // 4}_{4 * (n % 4)}.00\ta sound" for n in range(40)]
    (tmp_path / "mine.tsv").write_text("\n".join(["id\tcaption", *rows, ""]))
    train, val = (load_memmap(tmp_path / "mine", split, "small_16k") for split in ("train", "val"))
    assert (len(train), len(val)) == (36, 4)
    assert len(set(val.videos)) == 1 and not set(train.videos) & set(val.videos)


def test_several_sets_of_a_split_are_joined(tmp_path):
    first, second = write_memmap_set(tmp_path / "a_train", 2), write_memmap_set(tmp_path / "b_train", 1, seed=1)
    loaded = load_memmap(tmp_path, "train", "small_16k")
    assert loaded.ids == ["a_train0", "a_train1", "b_train0"]
    assert torch.equal(loaded.mean, torch.cat([first["mean"], second["mean"]]))


def test_a_byte_order_mark_is_skipped_and_another_encoding_is_reported(tmp_path):
    write_memmap_set(tmp_path / "train", 2)
    table = tmp_path / "train.tsv"
    ids = load_memmap(tmp_path, "train", "small_16k").ids
    table.write_text(table.read_text(), encoding="utf-8-sig")
    assert load_memmap(tmp_path, "train", "small_16k").ids == ids
    table.write_bytes("id\tlabel\na\tcafé\nb\tdog\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.tsv: no UTF-8 text"):
        load_memmap(tmp_path, "train", "small_16k")


def test_half_precision_is_read_as_float32(tmp_path):
    sync = torch.randn(2, 192, 768).bfloat16()
    write_memmap_set(tmp_path / "train", 2, sync_features=sync)
    loaded = load_memmap(tmp_path / "train", "train", "small_16k")
    assert torch.equal(loaded.sync_features, sync.float())


def test_the_tensors_are_memory_mapped(tmp_path):
    """A set that is larger than memory can be opened; writing to its tensors does not change the files."""
    write_memmap_set(tmp_path / "train", 2)
    before = (tmp_path / "train" / "mean.memmap").read_bytes()
    loaded = load_memmap(tmp_path / "train", "train", "small_16k")
    loaded.mean.zero_()
    assert (tmp_path / "train" / "mean.memmap").read_bytes() == before


def test_features_of_another_model_are_refused_with_its_name(tmp_path):
    write_memmap_set(tmp_path / "train", 1, model="small_44k")
    with pytest.raises(DataError, match=r"does not fit small_16k: mean \[345, 40\].*features for small_44k, medium"):
        load_memmap(tmp_path / "train", "train", "small_16k")
    assert len(load_memmap(tmp_path / "train", "train", "large_44k_v2")) == 1


def test_broken_sets_are_refused_with_the_reason(tmp_path):
    def check_refused(match, folder=tmp_path / "train"):
        with pytest.raises(DataError, match=match):
            load_memmap(folder, "train", "small_16k")

    check_refused("no memory map in it.*custom_finetune=true", tmp_path)
    std = torch.rand(2, 250, 20)
    std[1, 3, 4] = torch.inf
    write_memmap_set(tmp_path / "train", 2, std=std)
    check_refused("std holds values that are not finite")
    write_memmap_set(tmp_path / "train", 2)
    table = tmp_path / "train.tsv"
    text = table.read_text()
    table.write_text(text + "another\tone\n")
    check_refused("3 clips, train has features of 2")
    table.write_text(text.replace("id\t", "name\t"))
    check_refused("no column id")
    table.unlink()
    check_refused("no table of its clips; train.tsv is expected")
    table.write_text(text)
    mean = tmp_path / "train" / "mean.memmap"
    mean.write_bytes(mean.read_bytes()[:100])
    check_refused("mean.memmap: 100 bytes; 40000 bytes are expected")
    meta = json.loads((tmp_path / "train" / "meta.json").read_text())
    del meta["clip_features"], meta["sync_features"]
    (tmp_path / "train" / "meta.json").write_text(json.dumps(meta))
    check_refused("no clip_features, sync_features in it")
    (tmp_path / "train" / "meta.json").write_text("{")
    check_refused("cannot be read as a memory map")
