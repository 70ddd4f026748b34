"""Videos that a verdict needs: what the default shares hold out, and what is said where it is not enough."""

import re

import pytest

from mmaudio.data.scan import MeasuredWindow
from mmaudio.data.splits import SplitRatios, assign_splits, split_videos
from mmaudio.data.verdict_needs import count_held_out, describe_verdict_needs

WINDOWS = [MeasuredWindow(4.0 * index, 4.0 * index + 8) for index in range(14)]


def names(count):
    return [f"video {number}.mp4" for number in range(count)]


@pytest.mark.parametrize("count", range(3, 30))
def test_the_default_shares_allow_a_verdict_from_nine_videos_on(count):
    splits = list(assign_splits(names(count), SplitRatios(), {}).values())
    assert splits.count("test") == (max(3, round(0.2 * count)) if count >= 9 else max(1, round(0.2 * count)))
    assert splits.count("val") == max(1, round(0.1 * count)) and splits.count("train") >= 1


def test_a_share_that_was_asked_for_stays_as_it_is():
    assert count_held_out(names(10), SplitRatios(test=0.1), {}) == 1


def test_videos_of_an_earlier_split_stay_where_they_are():
    previous = {
        name: "test" if number < 2 else "val" if number == 2 else "train" for number, name in enumerate(names(10))
    }
    assert assign_splits(names(10), SplitRatios(), previous) == previous
    assert count_held_out(names(10), SplitRatios(), previous) == 2
    assert count_held_out(names(11), SplitRatios(), previous) == 3, "a new video fills what is missing"


@pytest.mark.parametrize("ratios", [SplitRatios(), SplitRatios(test=0.1), SplitRatios(val=0.3), SplitRatios(0, 0)])
@pytest.mark.parametrize("count", [4, 5, 6, 7, 8, 10, 14])
def test_the_flags_that_are_named_allow_a_verdict(count, ratios):
    lines = describe_verdict_needs(count_held_out(names(count), ratios, {}), count, ratios)
    for line in lines[3:]:
        test, val = (re.search(rf"--{name}_ratio (\S+?)(:| |$)", line) for name in ("test", "val"))
        other = SplitRatios(float(val[1]) if val else ratios.val, float(test[1]))
        splits = list(assign_splits(names(count), other, {}).values())
        assert splits.count("test") == 3 and line.endswith(f"and training has {splits.count('train')}")
    assert len(lines) in (0, 4)


def test_where_flags_are_not_enough_more_videos_are_the_way():
    assert describe_verdict_needs(1, 3, SplitRatios()) == [
        "none will be possible: 1 of 3 videos is held out, 3 are needed. Ways to one:",
        "--folds on (of train_lora.py: folds=on): every video is held out once, and training has all of them",
        "more videos: from 9 on, 3 are held out",
    ]
    assert describe_verdict_needs(2, 2, SplitRatios(0, 1))[1:] == ["more videos: from 9 on, 3 are held out"]
    assert describe_verdict_needs(3, 9, SplitRatios()) == []


@pytest.mark.parametrize(("count", "held_out"), [(1, 1), (2, 2), (6, 1), (9, 3)])
def test_what_is_counted_beforehand_is_what_is_held_out(count, held_out):
    divided, _ = split_videos(dict.fromkeys(names(count), WINDOWS), SplitRatios())
    assert sum("test" in by_split for by_split in divided.values()) == held_out
    assert count_held_out(names(count), SplitRatios(), {}) == held_out
