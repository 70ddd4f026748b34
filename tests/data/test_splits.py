"""Splits of videos: stable from run to run, complete, and without overlap."""

from __future__ import annotations

import pytest

from mmaudio.data.scan import MeasuredWindow
from mmaudio.data.splits import MIXED, SplitRatios, SplitStore, assign_splits, split_videos
from mmaudio.errors import ConfigError, DataError

WINDOWS = [MeasuredWindow(4.0 * index, 4.0 * index + 8) for index in range(7)]


def names(count):
    return [f"video {number}.mp4" for number in range(count)]


def windows_of(seconds):
    """Windows of 8 s every 4 s of a video of that length."""
    return [MeasuredWindow(4.0 * i, 4.0 * i + 8, -3.0, -20.0, 0.0) for i in range(int((seconds - 8) // 4) + 1)]


def splits_of(divided):
    return {video: next(iter(by_split)) for video, by_split in divided.items()}


@pytest.mark.parametrize("added", range(1, 30))
def test_no_video_moves_when_others_are_added(added):
    before = assign_splits(names(20), SplitRatios(), {})
    after = assign_splits(names(20 + added), SplitRatios(), before)
    assert {video: after[video] for video in before} == before
    held_out = [list(after.values()).count(split) for split in ("test", "val")]
    assert held_out == [max(4, round(0.2 * (20 + added))), max(2, round(0.1 * (20 + added)))]


def test_a_video_divided_in_time_is_for_training_once_there_are_others():
    split = assign_splits(names(4), SplitRatios(), {"video 0.mp4": MIXED, "video 1.mp4": MIXED})
    assert {split["video 2.mp4"], split["video 3.mp4"]} == {"test", "val"}
    assert {split["video 0.mp4"], split["video 1.mp4"]} == {"train"}


def test_every_split_has_a_video_whatever_the_previous_splits():
    for previous in ("train", "test", "val"):
        assert set(assign_splits(names(3), SplitRatios(), dict.fromkeys(names(3), previous)).values()) >= {
            "train",
            "test",
            "val",
        }


def test_the_store_returns_the_splits_unless_the_ratios_changed(tmp_path):
    path = tmp_path / "clips.splits.json"
    divided, _ = split_videos(dict.fromkeys(names(5), WINDOWS), SplitRatios())
    SplitStore(path, SplitRatios()).save(divided)
    assert SplitStore(path, SplitRatios()).splits == {
        video: next(iter(by_split)) for video, by_split in divided.items()
    }
    assert SplitStore(path, SplitRatios(test=0.4)).splits == {}
    content = path.read_bytes()
    for damaged in (content[:20], b"\xff\xd0"):
        path.write_bytes(damaged)
        assert SplitStore(path, SplitRatios()).splits == {}
        SplitStore(path, SplitRatios()).save(divided)
        assert path.read_bytes() == content


@pytest.mark.parametrize("count", [1, 2, 5])
def test_with_ratios_of_0_every_video_is_for_training(count):
    videos = {f"{number}.mp4": [MeasuredWindow(0.0, 8.0), MeasuredWindow(8.0, 16.0)] for number in range(count)}
    assert split_videos(videos, SplitRatios(0, 0, 8.0)) == (
        {name: {"train": windows} for name, windows in videos.items()},
        [],
    )


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.2), (0.2, 0.0)])
@pytest.mark.parametrize("seconds", [16, 60])
@pytest.mark.parametrize("count", [1, 2])
def test_a_ratio_of_0_holds_nothing_out_of_few_videos(val, test, seconds, count):
    windows = [MeasuredWindow(start, start + 8.0) for start in range(0, seconds - 7, 4)]
    divided, notes = split_videos({f"{number}.mp4": windows for number in range(count)}, SplitRatios(val, test, 8.0))
    assert [set(by_split) for by_split in divided.values()] == [{"train", "val" if val else "test"}] * count
    assert notes == []


def test_two_short_videos_give_one_to_each_requested_split():
    divided, notes = split_videos(
        {name: [MeasuredWindow(0.0, 8.0)] for name in ("a.mp4", "b.mp4")}, SplitRatios(0.2, 0.0, 8.0)
    )
    assert sorted(next(iter(by_split)) for by_split in divided.values()) == ["train", "val"]
    assert notes[0].endswith("is held out")


def test_whole_videos_are_held_out_and_few_move_when_one_is_added():
    videos = {f"video {n}.mp4": windows_of(32) for n in range(20)}
    divided, notes = split_videos(videos, SplitRatios())
    counts = [list(splits_of(divided).values()).count(split) for split in ("train", "val", "test")]
    assert counts == [14, 2, 4]
    assert notes == []
    assert all(by_split[next(iter(by_split))] == windows_of(32) for by_split in divided.values())
    with_added, _ = split_videos({**videos, "new.mp4": windows_of(32)}, SplitRatios())
    before, after = splits_of(divided), splits_of(with_added)
    assert sum(before[video] != after[video] for video in videos) <= 2
    three, _ = split_videos({name: windows_of(8) for name in "abc"}, SplitRatios())
    assert sorted(splits_of(three).values()) == ["test", "train", "val"]


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_videos_are_divided_in_time_with_a_gap(count):
    divided, notes = split_videos({str(n): windows_of(120) for n in range(count)}, SplitRatios())
    assert notes == []
    for by_split in divided.values():
        train, val, test = by_split["train"], by_split["val"], by_split["test"]
        assert val[0].start - train[-1].end >= 8
        assert test[0].start - val[-1].end >= 8
        assert len(train) > len(test) >= len(val) >= 1


@pytest.mark.parametrize("seconds", [16, 24, 36])
def test_a_short_video_holds_out_one_part_and_reports_it(seconds):
    divided, notes = split_videos({"a.mp4": windows_of(seconds)}, SplitRatios())
    assert divided["a.mp4"].keys() == {"train", "test"}
    assert divided["a.mp4"]["train"][-1].end <= divided["a.mp4"]["test"][0].start
    assert "both" in notes[0]


def test_of_two_clips_one_is_held_out():
    divided, notes = split_videos({"a.mp4": windows_of(10), "b.mp4": windows_of(10)}, SplitRatios())
    assert sorted(splits_of(divided).values()) == ["test", "train"]
    assert "held out, for validation and test both" in notes[0]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_whole_folder_can_be_the_test_split(count):
    divided, notes = split_videos({f"{n}.mp4": windows_of(8) for n in range(count)}, SplitRatios(val=0, test=1))
    assert set(splits_of(divided).values()) == {"test"} and len(divided) == count and not notes
    with pytest.raises(ConfigError, match="together below 1"):
        SplitRatios(val=0.1, test=1)


def test_one_short_video_is_refused():
    with pytest.raises(DataError, match=r"at least 16 s of usable video"):
        split_videos({"a.mp4": windows_of(12)}, SplitRatios())
