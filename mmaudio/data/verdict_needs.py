"""Held-out videos that a verdict needs: how many a split has, and what to do where they are too few."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mmaudio.data.clips import MIN_VERDICT_VIDEOS
from mmaudio.data.splits import MAX_VIDEOS_DIVIDED_IN_TIME, VIDEOS_FOR_VERDICT, SplitRatios, assign_splits


def count_held_out(videos: Sequence[str], ratios: SplitRatios, previous: Mapping[str, str]) -> int:
    """Number of videos that the evaluation gets, if all can be used; a few are divided in time, each counts."""
    if ratios.all_test or not ratios.held_out:
        return len(videos) if ratios.all_test else 0
    if len(videos) <= MAX_VIDEOS_DIVIDED_IN_TIME:
        return len(videos)
    splits = list(assign_splits(list(videos), ratios, previous).values())
    return splits.count("test") or splits.count("val")


def describe_verdict_needs(held_out: int, count: int, ratios: SplitRatios) -> list[str]:
    """Why `held_out` of `count` videos allow no verdict, and a line for each way to one; empty where they do."""
    if held_out >= MIN_VERDICT_VIDEOS:
        return []
    verb = "is" if held_out == 1 else "are"
    numbers = f"{held_out} of {count} videos {verb} held out, {MIN_VERDICT_VIDEOS} are needed"
    reason = f"none will be possible: {numbers}. Ways to one:"
    start = f": from {VIDEOS_FOR_VERDICT} on, {MIN_VERDICT_VIDEOS} are held out" if count < VIDEOS_FOR_VERDICT else ""
    folds = "--folds on (of train_lora.py: folds=on): every video is held out once, and training has all of them"
    more = f"more videos{start}"
    return [reason, *([folds] if count >= MIN_VERDICT_VIDEOS else []), more, *_describe_ratios(count, ratios)]


def _describe_ratios(count: int, ratios: SplitRatios) -> list[str]:
    """The flags that hold out enough of `count` videos, and what is left to train on; none where nothing would be."""
    if count <= MIN_VERDICT_VIDEOS or ratios.all_test:
        return []
    ratio = math.ceil(100 * MIN_VERDICT_VIDEOS / count) / 100
    if ratio == ratios.test:  # the videos stay where they are unless it changes
        ratio += 0.01
    flags, validation = f"--test_ratio {ratio:g}", max(1, round(count * ratios.val)) if ratios.val else 0
    if count - MIN_VERDICT_VIDEOS - validation < 1:
        flags, validation = f"{flags} --val_ratio 0", 0
    purpose = "" if validation else ", which also choose the best step"
    trained = count - MIN_VERDICT_VIDEOS - validation
    return [f"{flags}: {MIN_VERDICT_VIDEOS} are held out{purpose}, and training has {trained}"]
