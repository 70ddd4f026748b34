"""Folds by source video: who is held out when, the tables that say so, and what is refused before any work."""

import pytest
from mini_training import write_shards

from mmaudio.data.clip_table import read_clips, write_clips
from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import open_features
from mmaudio.data.folds import (
    all_clips_table,
    count_folds,
    fold_table,
    plan_path,
    read_fold_plan,
    write_fold_tables,
)
from mmaudio.errors import ConfigError, DataError
from mmaudio.utils.setting_checks import parse_folds


def table_of(folder, videos, clips=9):
    """A table of `videos` videos with so many clips every 4 s each, and a shard for each."""
    splits = ["val", "test", *["train"] * videos]
    rows = [
        Clip(f"v{v}_{4.0 * i:g}", f"v{v}.mp4", 4.0 * i, 4.0 * i + 8, "a sound", splits[v], -3.0, -20.0, 0.1)
        for v in range(videos)
        for i in range(clips)
    ]
    write_shards(folder, rows)
    return folder / "clips.tsv"


def videos_by_split(path):
    clips = read_clips(path)
    return {split: {clip.video for clip in clips if clip.split == split} for split in ("train", "val", "test")}


@pytest.mark.parametrize(("videos", "folds"), [(4, 4), (6, 5), (8, 5), (12, 5), (12, 3)])
def test_every_video_is_held_out_once_and_never_trained_on_in_that_fold(tmp_path, videos, folds):
    table = table_of(tmp_path, videos, clips=2)
    plan = write_fold_tables(tmp_path / "exp", table, tmp_path, folds)
    names = {f"v{v}.mp4" for v in range(videos)}
    assert sorted(video for fold in plan.videos for video in fold) == sorted(names)
    sizes = [len(fold) for fold in plan.videos]
    assert max(sizes) - min(sizes) <= 1
    validation = []
    for number in plan.numbers:
        splits = videos_by_split(fold_table(tmp_path / "exp", number))
        assert splits["test"] == set(plan.videos[number - 1])
        assert splits["train"] and splits["val"]
        assert set.union(*splits.values()) == names
        assert sum(map(len, splits.values())) == videos, "no video is in two splits"
        validation += sorted(splits["val"])
    assert len(set(validation)) == min(folds, videos), "the validation videos change from fold to fold"
    assert videos_by_split(all_clips_table(tmp_path / "exp")) == {"train": names, "val": set(), "test": set()}


def test_with_two_videos_left_each_is_divided_in_time_with_a_gap(tmp_path):
    table = table_of(tmp_path, 3)
    write_fold_tables(tmp_path / "exp", table, tmp_path, 3)
    for number in (1, 2, 3):
        clips = read_clips(fold_table(tmp_path / "exp", number))
        splits = videos_by_split(fold_table(tmp_path / "exp", number))
        assert splits["train"] == splits["val"] and len(splits["train"]) == 2
        for video in splits["val"]:
            ends = [clip.end for clip in clips if (clip.video, clip.split) == (video, "train")]
            starts = [clip.start for clip in clips if (clip.video, clip.split) == (video, "val")]
            assert max(ends) + 8 <= min(starts)


def test_two_short_videos_that_are_left_are_one_for_each(tmp_path):
    table = table_of(tmp_path, 3, clips=2)
    write_fold_tables(tmp_path / "exp", table, tmp_path, 3)
    splits = videos_by_split(fold_table(tmp_path / "exp", 1))
    assert [len(splits[name]) for name in ("train", "val", "test")] == [1, 1, 1]
    with pytest.raises(DataError, match="more folds"):
        write_fold_tables(tmp_path / "other", table, tmp_path, 2)


def test_the_features_are_those_of_the_whole_table(tmp_path):
    table = table_of(tmp_path, 5, clips=2)
    write_fold_tables(tmp_path / "exp", table, tmp_path, 5)
    for number in range(1, 6):
        sets = [
            open_features(fold_table(tmp_path / "exp", number), tmp_path, name) for name in ("train", "val", "test")
        ]
        assert sum(map(len, sets)) == 10


def test_a_second_writing_changes_nothing_and_other_videos_are_refused(tmp_path):
    table = table_of(tmp_path, 5, clips=2)
    first = write_fold_tables(tmp_path / "exp", table, tmp_path, 5)
    files = sorted((tmp_path / "exp").rglob("*.*"))
    times = [path.stat().st_mtime_ns for path in files]
    assert write_fold_tables(tmp_path / "exp", table, tmp_path, 5) == first == read_fold_plan(tmp_path / "exp")
    assert [path.stat().st_mtime_ns for path in files] == times
    with pytest.raises(DataError, match="has 5 folds of 5 videos, now there are 4 of 5"):
        write_fold_tables(tmp_path / "exp", table, tmp_path, 4)
    write_clips(table, [clip for clip in read_clips(table) if clip.video != "v0.mp4"])
    with pytest.raises(DataError, match=r"now there are 4 of 4.*--from train"):
        write_fold_tables(tmp_path / "exp", table, tmp_path, 4)
    plan_path(tmp_path / "exp").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_fold_plan(tmp_path / "exp")


@pytest.mark.parametrize(
    ("text", "videos", "on_gpu", "folds"),
    [
        ("auto", 2, True, 0),
        ("auto", 3, True, 3),
        ("auto", 12, True, 5),
        ("auto", 13, True, 0),
        ("auto", 6, False, 0),
        ("on", 6, False, 5),
        ("on", 30, True, 5),
        ("off", 6, True, 0),
        ("6", 6, False, 6),
    ],
)
def test_the_number_of_folds(text, videos, on_gpu, folds):
    assert count_folds("--folds ", text, videos, on_gpu) == folds


@pytest.mark.parametrize(
    ("text", "videos", "message"),
    [
        ("1", 6, "--folds 1: auto, on, off, or a number of folds from 2 on"),
        ("many", 6, "--folds many: auto"),
        ("-3", 6, "--folds -3: auto"),
        ("7", 6, "--folds 7: there are 6 videos that can be used, and every fold holds out at least one"),
        ("2", 2, "--folds 2: folds take 3 videos that can be used or more, there are fewer (2)"),
        ("on", 1, "--folds on: folds take 3"),
    ],
)
def test_folds_that_cannot_be_had_are_one_line(text, videos, message):
    with pytest.raises(ConfigError) as error:
        count_folds("--folds ", text, videos, True)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_word_is_known_without_counting_videos():
    for text in ("auto", "on", "off", "2", "12"):
        assert parse_folds("folds=", text) == text
    assert parse_folds("folds=", str(False)) == "off", "a bare `off` in a YAML file"
