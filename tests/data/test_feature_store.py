"""The feature store: what is written comes back, and what does not fit is refused with its reason."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from video_files import put_nan

from mmaudio.data.clip_table import write_clips
from mmaudio.data.clips import Clip, LeftOut
from mmaudio.data.feature_set import Features
from mmaudio.data.feature_store import (
    Header,
    encoder_names,
    find_damage,
    load_features,
    read_header,
    read_left_out_videos,
    read_shard,
    shard_path,
    write_shard,
)
from mmaudio.errors import DataError
from mmaudio.model.spec import MODELS

SPLITS = {"a.mp4": "train", "b c.mp4": "train", "d.mp4": "val", "e.mp4": "test"}


def features(clips, seed=0):
    """Features of `clips` clips at small sizes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((5, 3), (5, 3), (4, 6), (8, 2), (7, 4))
    return Features(*(torch.randn(clips, *shape, generator=generator) for shape in shapes))


def header(video, clips, **changes):
    encoders = {encoder: f"{name}:0123" for encoder, name in encoder_names(MODELS["small_44k"]).items()}
    ids, captions = [clip.id for clip in clips], [clip.caption for clip in clips]
    default = Header(video, ids, captions, "small_44k", 8.0, encoders, "source", "picture", "text")
    return replace(default, **changes)


@pytest.fixture
def store(tmp_path):
    """A table of four videos with two clips each, and their shards: (table, folder, clips by video)."""
    table, folder = tmp_path / "clips.tsv", tmp_path / "features"
    by_video = {
        video: [Clip(f"{video[0]}_{n}", video, 4.0 * n, 4.0 * n + 8, f"clip {n}", split, -3, -20, 0) for n in range(2)]
        for video, split in SPLITS.items()
    }
    write_clips(table, [clip for clips in by_video.values() for clip in clips])
    for seed, (video, clips) in enumerate(by_video.items()):
        write_shard(shard_path(folder, video), header(video, clips), features(2, seed))
    return table, folder, by_video


def test_a_split_is_loaded_in_the_tables_order(store):
    table, folder, _ = store
    loaded = load_features(table, folder, "train", "small_44k")
    assert loaded.ids == ["a_0", "a_1", "b_0", "b_1"]
    assert loaded.videos == ["a.mp4"] * 2 + ["b c.mp4"] * 2
    assert loaded.captions == ["clip 0", "clip 1"] * 2
    assert (len(loaded), loaded.seconds, loaded.model) == (4, 8.0, "small_44k")
    for name, tensor in loaded.tensors().items():
        both = torch.cat([features(2, 0).tensors()[name], features(2, 1).tensors()[name]])
        assert torch.equal(tensor, both)
        assert torch.equal(getattr(loaded[torch.tensor([3, 0])], name), both[[3, 0]])
    subset = loaded.to("cpu").subset([2, 1])
    assert subset.ids == ["b_0", "a_1"]
    assert torch.equal(subset.mean, loaded.mean[[2, 1]])


def test_models_with_the_same_codec_and_encoders_share_features(store):
    table, folder, _ = store
    assert len(load_features(table, folder, "val", "large_44k_v2")) == 2
    with pytest.raises(DataError, match="features for small_44k, not for small_16k"):
        load_features(table, folder, "val", "small_16k")


def test_the_same_features_give_the_same_bytes(tmp_path, store):
    _, _, by_video = store
    contents = set()
    for number in range(5):
        path = tmp_path / f"{number}.safetensors"
        write_shard(path, header("a.mp4", by_video["a.mp4"]), features(2))
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_the_test_split_replaces_an_absent_val_and_vice_versa(store):
    table, folder, by_video = store
    write_clips(table, by_video["a.mp4"] + by_video["e.mp4"])
    assert load_features(table, folder, "val").ids == load_features(table, folder, "test").ids == ["e_0", "e_1"]


def test_videos_that_extraction_left_out_are_skipped_and_listed(store):
    table, folder, by_video = store
    write_shard(shard_path(folder, "a.mp4"), header("a.mp4", by_video["a.mp4"], left_out="broken"), None)
    write_shard(shard_path(folder, "e.mp4"), header("e.mp4", by_video["e.mp4"], left_out="broken too"), None)
    assert load_features(table, folder, "train").ids == ["b_0", "b_1"]
    assert load_features(table, folder, "test").ids == ["d_0", "d_1"]
    assert read_left_out_videos(table, folder) == [LeftOut("a.mp4", "broken"), LeftOut("e.mp4", "broken too")]


def test_mismatched_features_are_refused(store):
    table, folder, by_video = store
    path, clips = shard_path(folder, "d.mp4"), by_video["d.mp4"]

    def check_refused(match):
        with pytest.raises(DataError, match=match):
            load_features(table, folder, "val", "small_44k")

    put_nan(path, "std", 1)
    check_refused(r"d_mp4.*: not finite: std of clip d_1; delete it and extract again")
    write_shard(path, header("d.mp4", clips, captions=["other", "words"]), features(2))
    check_refused("another table of clips")
    write_shard(path, header("d.mp4", clips, seconds=5.0), features(2))
    check_refused("another table of clips")
    path.write_bytes(path.read_bytes()[:200])
    check_refused("no feature shard of this version")
    path.unlink()
    check_refused("not there; extract features first")
    write_clips(table, by_video["a.mp4"])
    check_refused("no val clip")


def flip(path, content, bit):
    """Write `content` to `path` with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


@pytest.mark.parametrize("left_out", [False, True])
def test_no_flipped_bit_of_a_shard_goes_unnoticed(store, left_out):
    table, folder, by_video = store
    path = shard_path(folder, "d.mp4")
    if left_out:
        write_shard(path, header("d.mp4", by_video["d.mp4"], left_out="broken"), None)
    content, draw = path.read_bytes(), random.Random(0)
    harmless = content.index(b"crc32")
    for bit in draw.sample(range(8 * len(content)), 60):
        if bit // 8 in range(harmless, harmless + 5):
            continue  # as the next test shows
        flip(path, content, bit)
        seen = read_header(path)
        assert seen is None or (not left_out and find_damage(path, seen).startswith(("damaged", "not finite")))
        with pytest.raises(DataError, match=r"damaged|not finite"):
            read_shard(path)
            load_features(table, folder, "val")


def test_a_flipped_bit_in_the_name_of_the_checksums_is_harmless(store):
    table, folder, _ = store
    path, before = shard_path(folder, "d.mp4"), load_features(table, folder, "val")
    content = path.read_bytes()
    place = content.index(b"crc32")
    for bit in range(8 * place, 8 * (place + 5), 8):
        flip(path, content, bit)
        assert torch.equal(load_features(table, folder, "val").mean, before.mean)


def test_shards_of_0_1_0_have_no_checksums_and_stay_valid(store):
    table, folder, _ = store
    path, before = shard_path(folder, "d.mp4"), load_features(table, folder, "val")
    with safe_open(path, "pt") as file:
        metadata = {"mmaudio": file.metadata()["mmaudio"]}
    save_file(load_file(path), path, metadata)
    after = load_features(table, folder, "val")
    assert all(torch.equal(tensor, before.tensors()[name]) for name, tensor in after.tensors().items())


def test_shards_of_other_versions_and_other_files_are_stale(tmp_path, store):
    _, folder, by_video = store
    path = shard_path(folder, "a.mp4")
    assert read_header(path) == header("a.mp4", by_video["a.mp4"])
    write_shard(path, header("a.mp4", by_video["a.mp4"], version=0), features(2))
    assert read_header(path) is None
    with pytest.raises(DataError, match="extract again"):
        read_shard(path)
    assert read_header(tmp_path / "none.safetensors") is None


def test_similar_video_names_have_separate_shards(tmp_path):
    names = ["a b.mp4", "a_b.mp4", "a?b.mp4", "ä b.mp4", "x" * 300 + ".mp4", "x" * 300 + ".mov"]
    paths = {shard_path(tmp_path, name).name for name in names}
    assert len(paths) == len(names)
    assert max(map(len, paths)) < 100
