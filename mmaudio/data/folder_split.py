"""From a folder of videos to the table of clips: look through every file, name what is left out, divide the rest into
training, validation and test by source video.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mmaudio.data.captions import Captions
from mmaudio.data.captions import caption as caption
from mmaudio.data.clips import MEASURED, Clip, LeftOut, find_videos, video_below
from mmaudio.data.filters import Rules, kind
from mmaudio.data.scan import Scan, ScanSettings, ScanStore, Span, scan_video
from mmaudio.data.splits import Divided, Remembered, Shares, divide, rank
from mmaudio.errors import ConfigError, DataError
from mmaudio.utils.subprocess_worker import Guarded, Lost

GAP = "between training and held-out clips"
NO_NAME = "its name is no UTF-8; rename it"
TIMEOUT, TIMEOUT_PER_MB = 120.0, 5.0
"""Seconds that looking through a file may take, and more for each megabyte of it, where nothing else is asked for."""
LONGEST_TIMEOUT = 1e6
"""Seconds that may be asked for instead; the system waits for no more than about twice as many."""


@dataclass(frozen=True)
class SplitSettings:
    """How a folder becomes a table of clips."""

    scan: ScanSettings = field(default_factory=ScanSettings)
    rules: Rules = field(default_factory=Rules)
    val_ratio: float = 0.1
    """Share of the videos for validation; more than 0 means at least one."""
    test_ratio: float = 0.2
    """Share of the videos for the test."""
    prompt: str = ""
    """Caption of the videos that have none of their own."""
    captions: Path | None = None
    """A table of captions."""
    keep_all: bool = False
    """Keep clips that break a rule."""
    recursive: bool = False
    """Search sub-folders too."""
    timeout: float | None = None
    """Seconds that looking through one file may take; None: more for a larger file."""
    debug: bool = False
    """Show what is raised while a file is looked through."""

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise ConfigError(f"timeout per video {self.timeout:g}: more than 0 s, at most {LONGEST_TIMEOUT:g}")
        _ = self.shares

    @property
    def shares(self) -> Shares:
        """What is held out; ConfigError where it makes no sense."""
        return Shares(self.val_ratio, self.test_ratio, self.scan.seconds)


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
    """What a user should know about the files and how the clips were divided."""
    scans: list[Scan] = field(default_factory=list)
    """What was measured, of what is left out too."""

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
    remembered: Remembered | None = None,
) -> SplitResult:
    """Look through the files in `root` (those that changed since `store` saw them) and divide their windows.

    `remembered` lets videos keep their split from run to run. Raises DataError where there is no folder or no file in
    it, where the table of captions makes no sense, or where nothing can be held out.
    """
    captions = Captions(root, settings.prompt, settings.captions)
    files = find_videos(root, ignored, settings.recursive)
    if not files:
        below = " (sub-folders are searched with --recursive)" if any(path.is_dir() for path in root.iterdir()) else ""
        raise DataError(f"{root}: no file in it{below}; a folder of videos is expected")
    scans, scanned = _scans(root, files, settings, store, progress)
    chosen = {scan.video: _judged(scan, settings) for scan in scans}
    left_out = [row for scan in scans for row in _left_out(scan, chosen[scan.video])]
    whole = {row.video for row in left_out if row.start is None}
    usable = {scan.video: [span for span, why in chosen[scan.video] if not why] for scan in scans}
    usable = {video: spans for video, spans in usable.items() if video not in whole}
    divided, notes = (
        ({}, []) if not usable else divide(usable, settings.shares, remembered.splits if remembered else None)
    )
    if remembered is not None:
        remembered.keep(divided)
    for video, parts in divided.items():
        kept = [span for spans in parts.values() for span in spans]
        left_out += [LeftOut(video, GAP, span.start, span.end) for span in usable[video] if span not in kept]
    left_out.sort(key=lambda row: (row.video, row.start or 0.0))
    clips = _clips(divided, settings, captions)
    notes = [f"{scan.video}: {scan.note}" for scan in scans if scan.note and scan.video in usable] + notes
    notes += _copies(root, list(divided))
    if not settings.recursive and (other := video_below(root, ignored)):
        notes.append(f"sub-folders hold videos too, such as {other}: --recursive takes them")
    return SplitResult(clips, left_out, len(files), scanned, notes + _unused(captions, settings), scans)


def _scans(
    root: Path,
    files: list[Path],
    settings: SplitSettings,
    store: ScanStore,
    progress: Callable[[list[Path]], Iterable[Path]],
) -> tuple[list[Scan], int]:
    """One scan per file, and how many were made now."""
    names = {path: stated_name(path, root) for path in files}
    known = {
        path: store.find(path, settings.scan, name) if (root / name) == path else Scan(name, "", NO_NAME)
        for path, name in names.items()
    }
    new = [path for path, scan in known.items() if scan is None]
    with Guarded(scan_video, quiet=not settings.debug) as guarded:
        for path in progress(new):
            size = path.stat().st_size if os.path.exists(path) else 0  # noqa: PTH110, Path's own raises where a folder forbids a look
            limit = settings.timeout or TIMEOUT + TIMEOUT_PER_MB * size / 1e6
            try:
                known[path] = scan = guarded((path, settings.scan, names[path]), limit)
            except Lost as lost:  # another machine, or another day, may do better: it is not kept
                known[path] = Scan(names[path], "", str(lost))
            else:
                store.add(scan)
    return [scan for scan in known.values() if scan is not None], len(new)


def stated_name(path: Path, root: Path) -> str:
    """What the tables call a file: its path below `root`, with marks for what is no UTF-8 in it."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")


def _judged(scan: Scan, settings: SplitSettings) -> list[tuple[Span, str]]:
    """Every window of a file with the reason why it is left out, empty where it is used."""
    return [
        (span, span.reason or ("" if settings.keep_all else "; ".join(settings.rules.broken(span))))
        for span in scan.spans
    ]


def _left_out(scan: Scan, judged: list[tuple[Span, str]]) -> list[LeftOut]:
    """The rows of one file: one for all of it, or one for each window that is not used."""
    if scan.reason:
        return [LeftOut(scan.video, scan.reason)]
    rows = [LeftOut(scan.video, why, span.start, span.end) for span, why in judged if why]
    if len(rows) < len(judged):
        return rows
    kinds = Counter(kind(row.reason) for row in rows)
    if len(rows) == 1:
        return [LeftOut(scan.video, rows[0].reason)]
    if len(kinds) == 1:
        return [LeftOut(scan.video, f"{next(iter(kinds))} throughout")]
    return [LeftOut(scan.video, "no clip of it: " + ", ".join(f"{n} x {what}" for what, n in kinds.most_common()))]


def _clips(divided: dict[str, Divided], settings: SplitSettings, captions: Captions) -> list[Clip]:
    """The rows of the table, by video and time."""
    rows = []
    for video, parts in divided.items():
        name = slug(video)
        for split, span in ((split, span) for split, spans in parts.items() for span in spans):
            clip_id = f"{name}_{round(span.start * 1000):08d}"
            measured = {column: getattr(span, column) for column in ("peak_db", "rms_db", "silence", *MEASURED)}
            rows.append(
                Clip(
                    clip_id,
                    video,
                    span.start,
                    span.end,
                    captions.of(video, clip_id, span.start),
                    split,
                    **measured,
                    track=settings.scan.track,
                    breaks="; ".join(map(kind, settings.rules.broken(span))),
                )
            )
    return sorted(rows, key=lambda clip: (clip.video, clip.start))


def slug(video: str) -> str:
    """A name of a video that is its alone and fit for a file name; the other videos have no part in it."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", Path(video).stem).strip("_")
    return name if video == f"{name}.mp4" else f"{name[:80]}_{rank(video)[:6]}".lstrip("_")


def _copies(root: Path, videos: list[str]) -> list[str]:
    """A note on every video that is the same, byte for byte, as an earlier one."""
    notes: list[str] = []
    first: dict[int, list[str]] = {}
    for video in sorted(videos):
        alike = first.setdefault((root / video).stat().st_size, [])
        same = next((other for other in alike if filecmp.cmp(root / other, root / video, shallow=False)), None)
        if same is None:
            alike.append(video)
        else:
            notes.append(f"{video} is the same file as {same}; take one away, or what is held out may be trained on")
    return notes


def _unused(captions: Captions, settings: SplitSettings) -> list[str]:
    """A note on the rows of the table of captions that no clip takes."""
    rows = captions.unused()
    if not rows:
        return []
    first = rows[0].id or rows[0].video
    return [
        f"{settings.captions}: {len(rows)} of its {len(captions.rows)} rows name no clip that is used, or one that "
        f"another row names more exactly, as {first}"
    ]
