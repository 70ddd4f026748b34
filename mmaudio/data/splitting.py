"""From a folder of videos to the table of clips: look through every file, name what is left out, divide the rest into
training, validation and test by source video.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mmaudio.data.clips import Clip, LeftOut, find_videos
from mmaudio.data.scanning import ScanSettings, ScanStore, Span, scan_video
from mmaudio.errors import ConfigError, DataError

BY_TIME = 2
"""With at most so many videos, each is divided in time; with more, whole videos are held out."""
GAP = "between training and held-out clips"
Divided = dict[str, list[Span]]
"""The windows of one video by split."""


@dataclass(frozen=True)
class SplitSettings:
    """How a folder becomes a table of clips."""

    scan: ScanSettings = field(default_factory=ScanSettings)
    val_ratio: float = 0.1
    """Share of the videos for validation; more than 0 means at least one."""
    test_ratio: float = 0.2
    """Share of the videos for the test."""
    prompt: str = ""
    """Caption of the videos without a .txt file beside them."""

    def __post_init__(self) -> None:
        if min(self.val_ratio, self.test_ratio) < 0 or self.val_ratio + self.test_ratio >= 1:
            raise ConfigError(
                f"val_ratio={self.val_ratio}, test_ratio={self.test_ratio}: each from 0, together below 1; "
                "0.1 and 0.2 are usual"
            )


@dataclass(frozen=True)
class SplitResult:
    """The clips, what is not used and why, and how many files were looked at."""

    clips: list[Clip]
    """Empty where nothing can be used."""
    left_out: list[LeftOut]
    found: int
    """Files in the folder: `used` plus `unused`."""
    scanned: int
    """Files that were looked through now; the others had not changed."""
    notes: list[str]
    """What a user should know about how the clips were divided."""

    @property
    def used(self) -> int:
        """Videos with at least one clip."""
        return len({clip.video for clip in self.clips})

    @property
    def unused(self) -> list[LeftOut]:
        """Whole files that are left out."""
        return [row for row in self.left_out if row.start is None]

    @property
    def unused_windows(self) -> list[LeftOut]:
        """Single windows of used videos that are left out."""
        return [row for row in self.left_out if row.start is not None]


def split_folder(
    root: Path,
    settings: SplitSettings,
    store: ScanStore,
    ignored: tuple[Path, ...] = (),
    progress: Callable[[list[Path]], Iterable[Path]] = iter,
) -> SplitResult:
    """Look through the files in `root` (those that changed since `store` saw them) and divide their windows.

    Raises DataError where there is no folder or no file in it, or where nothing can be held out.
    """
    files = find_videos(root, ignored)
    if not files:
        below = " (sub-folders are not searched)" if any(path.is_dir() for path in root.iterdir()) else ""
        raise DataError(f"{root}: no file in it{below}; a folder of videos is expected")
    known = {path: store.find(path, settings.scan) for path in files}
    new = [path for path, scan in known.items() if scan is None]
    for path in progress(new):
        known[path] = scan = scan_video(path, settings.scan)
        store.add(scan)
    scans = [scan for scan in known.values() if scan is not None]
    left_out = [LeftOut(scan.video, scan.reason) for scan in scans if scan.reason]
    for scan in scans:
        left_out += [LeftOut(scan.video, span.reason, span.start, span.end) for span in scan.spans if span.reason]
    usable = {scan.video: [span for span in scan.spans if not span.reason] for scan in scans if not scan.reason}
    divided, notes = divide(usable, settings) if usable else ({}, [])
    for video, parts in divided.items():
        kept = [span for spans in parts.values() for span in spans]
        left_out += [LeftOut(video, GAP, span.start, span.end) for span in usable[video] if span not in kept]
    left_out.sort(key=lambda row: (row.video, row.start or 0.0))
    return SplitResult(_clips(root, divided, settings), left_out, len(files), len(new), notes)


def divide(usable: dict[str, list[Span]], settings: SplitSettings) -> tuple[dict[str, Divided], list[str]]:
    """Every video's windows by split, and notes for the user; DataError where nothing can be held out.

    Whole videos are held out, those whose names hash lowest, so that adding a video moves few others. One or two videos
    are divided in time, with a gap of one clip between the parts.
    """
    if len(usable) > BY_TIME:
        return _by_video(usable, settings), []
    gaps = ((settings.scan.seconds, True), (settings.scan.seconds, False), (0.0, False))
    divided: dict[str, Divided] = {}
    notes = []
    for video, spans in usable.items():
        parts = (_by_time(spans, settings, gap, with_val) for gap, with_val in gaps)
        divided[video] = next((part for part in parts if part is not None), {"train": spans})
        if "test" in divided[video] and "val" not in divided[video]:
            notes.append(f"{video} is too short for three parts: what is held out serves for validation and test both")
    if not any("test" in parts for parts in divided.values()):
        if len(usable) == 1:
            raise DataError(
                f"{next(iter(usable))}: too short to train on one part and hold out another; it takes at least "
                f"{2 * settings.scan.seconds:g} s of usable video, or a second video"
            )
        held_out = min(usable, key=lambda video: (len(usable[video]), _rank(video)))
        divided[held_out] = {"test": usable[held_out]}
        notes.append(f"only two short videos: {held_out} is held out, for validation and test both")
    return divided, notes


def _by_video(usable: dict[str, list[Span]], settings: SplitSettings) -> dict[str, Divided]:
    count = len(usable)
    test, val = (max(1, round(count * r)) if r > 0 else 0 for r in (settings.test_ratio, settings.val_ratio))
    while test + val >= count:
        test, val = (test - 1, val) if test >= val else (test, val - 1)
    ranked = sorted(usable, key=_rank)
    split = dict.fromkeys(ranked, "train") | dict.fromkeys(ranked[: test + val], "val")
    split |= dict.fromkeys(ranked[:test], "test")
    return {video: {split[video]: spans} for video, spans in usable.items()}


def _by_time(spans: list[Span], settings: SplitSettings, gap: float, with_val: bool) -> Divided | None:
    """The first windows for training, the last for the test, `gap` seconds apart; None where a part stays empty."""
    parts: Divided = {}
    rest = spans
    for split, ratio in (("test", settings.test_ratio), ("val", settings.val_ratio if with_val else 0.0)):
        if split == "val" and not with_val:
            continue
        parts[split] = rest[len(rest) - max(1, round(len(spans) * ratio)) :]
        rest = [span for span in rest if span.end + gap <= parts[split][0].start]
        if not rest:
            return None
    return {"train": rest, **parts}


def _clips(root: Path, divided: dict[str, Divided], settings: SplitSettings) -> list[Clip]:
    """The rows of the table, by video and time."""
    names = _slugs(list(divided))
    rows = []
    for video, parts in divided.items():
        text = caption(root / video, settings.prompt)
        rows += [
            Clip(
                f"{names[video]}_{round(span.start * 1000):08d}", video, span.start, span.end, text, split,
                span.peak_db, span.rms_db, span.silence,
            )
            for split, spans in parts.items()
            for span in spans
        ]  # fmt: skip
    return sorted(rows, key=lambda clip: (clip.video, clip.start))


def caption(video: Path, prompt: str) -> str:
    """The text of the .txt file beside the video, else `prompt`, in one line."""
    beside = video.with_suffix(".txt")
    text = beside.read_text(encoding="utf-8-sig", errors="replace") if beside.is_file() else prompt
    return " ".join(text.split())


def _slugs(videos: list[str]) -> dict[str, str]:
    """A name per video that is unique and fit for a file name."""
    plain = {video: re.sub(r"[^A-Za-z0-9-]+", "_", Path(video).stem).strip("_") for video in videos}
    made = {}
    for video, name in plain.items():
        unsure = name != Path(video).stem or list(plain.values()).count(name) > 1
        made[video] = f"{name}_{_rank(video)[:6]}".lstrip("_") if unsure else name
    return made


def _rank(video: str) -> str:
    return hashlib.sha256(video.encode()).hexdigest()
