"""Which videos are held out stays so from run to run, whatever is added."""

from __future__ import annotations

import pytest

from mmaudio.data.scan import Span
from mmaudio.data.splits import MIXED, Remembered, Shares, assign, divide

WINDOWS = [Span(4.0 * index, 4.0 * index + 8) for index in range(7)]


def names(count):
    return [f"video {number}.mp4" for number in range(count)]


@pytest.mark.parametrize("more", range(1, 30))
def test_no_video_moves_when_others_are_added(more):
    before = assign(names(20), Shares(), {})
    after = assign(names(20 + more), Shares(), before)
    assert {video: after[video] for video in before} == before
    held_out = [list(after.values()).count(split) for split in ("test", "val")]
    assert held_out == [max(4, round(0.2 * (20 + more))), max(2, round(0.1 * (20 + more)))]


def test_what_was_trained_on_in_part_is_not_tested_where_there_is_another():
    split = assign(names(4), Shares(), {"video 0.mp4": MIXED, "video 1.mp4": MIXED})
    assert {split["video 2.mp4"], split["video 3.mp4"]} == {"test", "val"}
    assert {split["video 0.mp4"], split["video 1.mp4"]} == {"train"}


def test_every_split_has_a_video_even_where_what_is_known_says_otherwise():
    for known in ("train", "test", "val"):
        assert set(assign(names(3), Shares(), dict.fromkeys(names(3), known)).values()) >= {"train", "test", "val"}


def test_the_split_is_remembered_in_a_file_and_forgotten_with_other_shares(tmp_path):
    path = tmp_path / "clips.splits.json"
    divided, _ = divide(dict.fromkeys(names(5), WINDOWS), Shares())
    Remembered(path, Shares()).keep(divided)
    kept = Remembered(path, Shares()).splits
    assert kept == {video: next(iter(parts)) for video, parts in divided.items()}
    assert Remembered(path, Shares(test=0.4)).splits == {}
    whole = path.read_bytes()
    for damaged in (whole[:20], b"\xff\xd0"):
        path.write_bytes(damaged)
        assert Remembered(path, Shares()).splits == {}
        Remembered(path, Shares()).keep(divided)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("count", [1, 2, 5])
def test_without_shares_nothing_is_held_out_and_nothing_is_lost(count):
    videos = {f"{number}.mp4": [Span(0.0, 8.0), Span(8.0, 16.0)] for number in range(count)}
    assert divide(videos, Shares(0, 0, 8.0)) == ({name: {"train": spans} for name, spans in videos.items()}, [])


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.2), (0.2, 0.0)])
@pytest.mark.parametrize("seconds", [16, 60])
@pytest.mark.parametrize("count", [1, 2])
def test_a_share_of_0_holds_nothing_out_of_few_videos_either(val, test, seconds, count):
    spans = [Span(start, start + 8.0) for start in range(0, seconds - 7, 4)]
    divided, notes = divide({f"{number}.mp4": spans for number in range(count)}, Shares(val, test, 8.0))
    assert [set(parts) for parts in divided.values()] == [{"train", "val" if val else "test"}] * count
    assert notes == []


def test_two_short_videos_are_one_for_each_split_that_is_asked_for():
    divided, notes = divide({name: [Span(0.0, 8.0)] for name in ("a.mp4", "b.mp4")}, Shares(0.2, 0.0, 8.0))
    assert sorted(next(iter(parts)) for parts in divided.values()) == ["train", "val"]
    assert notes[0].endswith("is held out")
