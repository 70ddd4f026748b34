"""Training, validation and test splits of whole source videos, since windows of one video resemble each other."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mmaudio.data.clips import DEFAULT_TEST_RATIO, MIN_VERDICT_VIDEOS, SPLITS, Clip
from mmaudio.data.scan import MeasuredWindow
from mmaudio.errors import ConfigError, DataError
from mmaudio.utils.files import atomic_write

MAX_VIDEOS_DIVIDED_IN_TIME = 2
"""With at most so many videos, each is divided in time; with more, whole videos are held out."""
VIDEOS_FOR_VERDICT = 9
"""From this many videos on the default ratio holds out MIN_VERDICT_VIDEOS, where the share alone would be 2."""
MIXED = "mixed"
"""The stored split of a video that was divided in time."""
WindowsBySplit = dict[str, list[MeasuredWindow]]
"""The windows of one video by split."""
T = TypeVar("T")
W = TypeVar("W", MeasuredWindow, Clip)


@dataclass(frozen=True)
class SplitRatios:
    """How much is held out."""

    val: float = 0.1
    """Share of the videos for validation; more than 0 means at least one."""
    test: float = DEFAULT_TEST_RATIO
    """Share of the videos for the test; the default is at least 3 videos of 9 and more."""
    gap: float = 8.0
    """Seconds between the splits of a video that is divided in time."""

    def __post_init__(self) -> None:
        valid = self.val >= 0 and self.test >= 0 and self.val + self.test < 1  # so that NaN is refused too
        if not valid and not self.all_test:
            raise ConfigError(
                f"val_ratio={self.val}, test_ratio={self.test}: each from 0, together below 1; 0.1 and 0.2 are usual, "
                "0 and 1 for a folder to evaluate on alone"
            )

    @property
    def all_test(self) -> bool:
        """Whether no video is for training."""
        return self.val == 0 and self.test == 1

    @property
    def held_out(self) -> list[tuple[str, float]]:
        """Name and ratio of the splits that are not empty, but for training: test first."""
        return [(split, ratio) for split, ratio in (("test", self.test), ("val", self.val)) if ratio > 0]


def split_videos(
    usable: dict[str, list[MeasuredWindow]], ratios: SplitRatios, previous: Mapping[str, str] | None = None
) -> tuple[dict[str, WindowsBySplit], list[str]]:
    """Divide every video's windows among the splits; also returns notes for the user.

    Whole videos are held out, those whose names hash lowest; a video in `previous` stays in that split. One or two
    videos are divided in time, with a gap of one clip between the splits. With both ratios 0 nothing is held out,
    with 0 and 1 everything. Raises DataError where nothing can be held out.
    """
    if ratios.all_test:
        return {video: {"test": windows} for video, windows in usable.items()}, []
    if ratios.val == ratios.test == 0:
        return {video: {"train": windows} for video, windows in usable.items()}, []
    if len(usable) > MAX_VIDEOS_DIVIDED_IN_TIME:
        split = assign_splits(list(usable), ratios, previous or {})
        return {video: {split[video]: windows} for video, windows in usable.items()}, []
    return _split_few_videos(usable, ratios)


def _split_few_videos(
    usable: dict[str, list[MeasuredWindow]], ratios: SplitRatios
) -> tuple[dict[str, WindowsBySplit], list[str]]:
    """Divide each video in time; of two videos that are too short for that, hold out the shorter one."""
    held_out = ratios.held_out
    attempts = ((ratios.gap, held_out), (ratios.gap, held_out[:1]), (0.0, held_out[:1]))
    divided: dict[str, WindowsBySplit] = {}
    notes = []
    for video, windows in usable.items():
        candidates = (divide_in_time(windows, splits, gap) for gap, splits in attempts)
        divided[video] = next((splits for splits in candidates if splits is not None), {"train": windows})
        if 1 < len(divided[video]) <= len(held_out):
            notes.append(f"{video} is too short for three parts: what is held out serves for validation and test both")
    if any(len(splits) > 1 for splits in divided.values()):
        return divided, notes
    if len(usable) == 1:
        raise DataError(
            f"{next(iter(usable))}: too short to train on one part and hold out another; it takes at least "
            f"{2 * ratios.gap:g} s of usable video, or a second video"
        )
    shorter = min(usable, key=lambda video: (len(usable[video]), name_hash(video)))
    divided[shorter] = {held_out[0][0]: usable[shorter]}
    purpose = ", for validation and test both" * (len(held_out) > 1)
    return divided, [*notes, f"only two short videos: {shorter} is held out{purpose}"]


def assign_splits(videos: list[str], ratios: SplitRatios, previous: Mapping[str, str]) -> dict[str, str]:
    """Assign a split to each of more than two videos: first as in `previous`, then the new ones fill what is missing.

    A video in `previous` moves only where a split would be empty; one that was divided in time moves first.
    """
    split = {video: previous[video] for video in videos if previous.get(video) in SPLITS}
    new = sorted((video for video in videos if video not in previous), key=name_hash)
    mixed = sorted((video for video in videos if previous.get(video) == MIXED), key=name_hash)
    sizes = _held_out_sizes(len(videos), ratios)
    for name, size in sizes.items():
        for video in _pop_first(new, size - list(split.values()).count(name)):
            split[video] = name
        if size and name not in split.values() and mixed:
            split[mixed.pop(0)] = name
    split |= dict.fromkeys([*new, *mixed], "train")
    for name in ("train", *(name for name, size in sizes.items() if size)):
        if name not in split.values():
            split[_video_to_move(split)] = name
    return split


def _held_out_sizes(count: int, ratios: SplitRatios) -> dict[str, int]:
    """Number of test and of validation videos among `count`; at least one is left for training."""
    test, val = (max(1, round(count * ratio)) if ratio > 0 else 0 for ratio in (ratios.test, ratios.val))
    if ratios.test == DEFAULT_TEST_RATIO and count >= VIDEOS_FOR_VERDICT:
        test = max(test, MIN_VERDICT_VIDEOS)
    while test + val >= count:
        test, val = (test - 1, val) if test >= val else (test, val - 1)
    return {"test": test, "val": val}


def _video_to_move(split: dict[str, str]) -> str:
    """A video of the largest split, to be moved to an empty one."""
    sizes = Counter(split.values())
    return min(split, key=lambda video: (-sizes[split[video]], name_hash(video)))


def _pop_first(videos: list[T], count: int) -> list[T]:
    """Remove the first `count` and return them."""
    first = videos[: max(0, count)]
    del videos[: max(0, count)]
    return first


def divide_in_time(windows: list[W], held_out: Sequence[tuple[str, float]], gap: float) -> dict[str, list[W]] | None:
    """The first windows for training, the last for the splits and ratios of `held_out`, `gap` seconds apart.

    None where a split would be empty.
    """
    by_split: dict[str, list[W]] = {}
    remaining = windows
    for split, ratio in held_out:
        by_split[split] = remaining[len(remaining) - max(1, round(len(windows) * ratio)) :]
        remaining = [window for window in remaining if window.end + gap <= by_split[split][0].start]
        if not remaining:
            return None
    return {"train": remaining, **by_split}


def name_hash(video: str) -> str:
    """SHA-256 of a video's name: an order that does not depend on the other videos."""
    return hashlib.sha256(video.encode()).hexdigest()


class SplitStore:
    """A JSON file with the split of every video of earlier runs; ignored where other ratios are requested."""

    def __init__(self, path: Path, ratios: SplitRatios) -> None:
        self.path, self.ratios = path, [ratios.val, ratios.test]
        self.splits: dict[str, str] = {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["shares"] == self.ratios:
                self.splits = {str(video): str(split) for video, split in content["splits"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # none yet, or truncated by a kill: it is written again

    def save(self, divided: Mapping[str, WindowsBySplit]) -> None:
        """Add the splits of `divided` and write the file, unless nothing changed."""
        for video, by_split in divided.items():
            self.splits[video] = next(iter(by_split)) if len(by_split) == 1 else MIXED
        text = json.dumps({"shares": self.ratios, "splits": self.splits}, ensure_ascii=False, indent=1, sort_keys=True)
        content = f"{text}\n".encode()
        if self.path.is_file() and self.path.read_bytes() == content:
            return
        with atomic_write(self.path) as partial:
            partial.write_bytes(content)
