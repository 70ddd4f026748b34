"""Training, validation and test: whole source videos, since windows of one video overlap and resemble each other."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mmaudio.data.clips import SPLITS
from mmaudio.data.scan import Span
from mmaudio.errors import ConfigError, DataError
from mmaudio.utils.files import writing

BY_TIME = 2
"""With at most so many videos, each is divided in time; with more, whole videos are held out."""
MIXED = "mixed"
"""What is remembered of a video that was divided in time."""
Divided = dict[str, list[Span]]
"""The windows of one video by split."""
T = TypeVar("T")


@dataclass(frozen=True)
class Shares:
    """How much is held out."""

    val: float = 0.1
    """Share of the videos for validation; more than 0 means at least one."""
    test: float = 0.2
    """Share of the videos for the test."""
    gap: float = 8.0
    """Seconds between the parts of a video that is divided in time."""

    def __post_init__(self) -> None:
        proper = self.val >= 0 and self.test >= 0 and self.val + self.test < 1  # so that NaN is refused too
        if not proper and not self.all_test:
            raise ConfigError(
                f"val_ratio={self.val}, test_ratio={self.test}: each from 0, together below 1; 0.1 and 0.2 are usual, "
                "0 and 1 for a folder to evaluate on alone"
            )

    @property
    def all_test(self) -> bool:
        """Whether no video is for training."""
        return self.val == 0 and self.test == 1


def divide(
    usable: dict[str, list[Span]], shares: Shares, known: Mapping[str, str] | None = None
) -> tuple[dict[str, Divided], list[str]]:
    """Every video's windows by split, and notes for the user; DataError where nothing can be held out.

    Whole videos are held out, those whose names hash lowest; a video whose split is `known` keeps it. One or two videos
    are divided in time, with a gap of one clip between the parts. With both shares 0 nothing is held out,
    with 0 and 1 everything.
    """
    if shares.all_test:
        return {video: {"test": spans} for video, spans in usable.items()}, []
    if shares.val == shares.test == 0:
        return {video: {"train": spans} for video, spans in usable.items()}, []
    if len(usable) > BY_TIME:
        split = assign(list(usable), shares, known or {})
        return {video: {split[video]: spans} for video, spans in usable.items()}, []
    wanted = [(split, ratio) for split, ratio in (("test", shares.test), ("val", shares.val)) if ratio > 0]
    tries = ((shares.gap, wanted), (shares.gap, wanted[:1]), (0.0, wanted[:1]))
    divided: dict[str, Divided] = {}
    notes = []
    for video, spans in usable.items():
        parts = (_by_time(spans, held_out, gap) for gap, held_out in tries)
        divided[video] = next((part for part in parts if part is not None), {"train": spans})
        if 1 < len(divided[video]) <= len(wanted):
            notes.append(f"{video} is too short for three parts: what is held out serves for validation and test both")
    if all(len(parts) == 1 for parts in divided.values()):
        if len(usable) == 1:
            raise DataError(
                f"{next(iter(usable))}: too short to train on one part and hold out another; it takes at least "
                f"{2 * shares.gap:g} s of usable video, or a second video"
            )
        shorter = min(usable, key=lambda video: (len(usable[video]), rank(video)))
        divided[shorter] = {wanted[0][0]: usable[shorter]}
        purpose = ", for validation and test both" * (len(wanted) > 1)
        notes.append(f"only two short videos: {shorter} is held out{purpose}")
    return divided, notes


def assign(videos: list[str], shares: Shares, known: Mapping[str, str]) -> dict[str, str]:
    """The split of every one of more than two videos: the known ones keep theirs, the others fill what lacks.

    A known video moves only where a split would be left without any: first one that was divided in time.
    """
    count = len(videos)
    test, val = (max(1, round(count * ratio)) if ratio > 0 else 0 for ratio in (shares.test, shares.val))
    while test + val >= count:
        test, val = (test - 1, val) if test >= val else (test, val - 1)
    split = {video: known[video] for video in videos if known.get(video) in SPLITS}
    free = sorted((video for video in videos if video not in known), key=rank)
    spare = sorted((video for video in videos if known.get(video) == MIXED), key=rank)
    for name, wanted in (("test", test), ("val", val)):
        lacking = wanted - list(split.values()).count(name)
        for video in _taken(free, lacking):
            split[video] = name
        if wanted and name not in split.values() and spare:
            split[spare.pop(0)] = name
    split |= dict.fromkeys([*free, *spare], "train")
    for name in ("train", *["test"] * (test > 0), *["val"] * (val > 0)):
        if name not in split.values():
            split[_donor(split)] = name
    return split


def _donor(split: dict[str, str]) -> str:
    """A video of the largest split, to be moved to an empty one."""
    sizes = Counter(split.values())
    return min(split, key=lambda video: (-sizes[split[video]], rank(video)))


def _taken(videos: list[T], count: int) -> list[T]:
    """Remove the first `count` and return them."""
    taken = videos[: max(0, count)]
    del videos[: max(0, count)]
    return taken


def _by_time(spans: list[Span], held_out: Sequence[tuple[str, float]], gap: float) -> Divided | None:
    """The first windows for training, the last for the splits and shares of `held_out`, `gap` seconds apart.

    None where a part stays empty.
    """
    parts: Divided = {}
    rest = spans
    for split, ratio in held_out:
        parts[split] = rest[len(rest) - max(1, round(len(spans) * ratio)) :]
        rest = [span for span in rest if span.end + gap <= parts[split][0].start]
        if not rest:
            return None
    return {"train": rest, **parts}


def rank(video: str) -> str:
    """A number without meaning that belongs to the name alone."""
    return hashlib.sha256(video.encode()).hexdigest()


class Remembered:
    """Which split every video has had, in a file; forgotten where other shares are asked for."""

    def __init__(self, path: Path, shares: Shares) -> None:
        self.path, self.shares = path, [shares.val, shares.test]
        self.splits: dict[str, str] = {}
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
            if stated["shares"] == self.shares:
                self.splits = {str(video): str(split) for video, split in stated["splits"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # none yet, or cut off by a kill: it is made again

    def keep(self, divided: Mapping[str, Divided]) -> None:
        """Add what was decided and write it all, unless nothing is new."""
        for video, parts in divided.items():
            self.splits[video] = next(iter(parts)) if len(parts) == 1 else MIXED
        text = json.dumps({"shares": self.shares, "splits": self.splits}, ensure_ascii=False, indent=1, sort_keys=True)
        content = f"{text}\n".encode()
        if self.path.is_file() and self.path.read_bytes() == content:
            return
        with writing(self.path) as part:
            part.write_bytes(content)
