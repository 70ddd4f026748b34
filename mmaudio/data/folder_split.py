"""Split of a folder of videos: scan every file, apply the filter rules, assign the clips to train, val and test."""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmaudio.data.captions import Captions
from mmaudio.data.clip_builder import build_clips
from mmaudio.data.clips import DEFAULT_TEST_RATIO, Clip, LeftOut
from mmaudio.data.filters import FilterRules, reason_kind
from mmaudio.data.scan import MeasuredWindow, ScanSettings, VideoScan, scan_on_threads, scan_video
from mmaudio.data.scan_store import ScanStore
from mmaudio.data.splits import SplitRatios, SplitStore, WindowsBySplit, split_videos
from mmaudio.data.verdict_needs import describe_verdict_needs
from mmaudio.data.video_files import VIDEO_SUFFIXES, find_video_below, find_videos
from mmaudio.errors import ConfigError, DataError
from mmaudio.media.streams import limit_codec_threads
from mmaudio.utils.cores import count_cores
from mmaudio.utils.memory import free_memory
from mmaudio.utils.progress import working
from mmaudio.utils.subprocess_pool import SubprocessPool
from mmaudio.utils.subprocess_worker import WorkerError

GAP_REASON = "between training and held-out clips"
NAME_REASON = "its name is no UTF-8; rename it"
TIMEOUT, TIMEOUT_PER_MB = 120.0, 5.0
"""Default of the seconds that scanning a file may take, and more for each megabyte of it."""
NORMALIZATIONS: dict[str, Callable[[VideoScan], float | None]] = {
    "video": lambda scan: scan.gain_db,
    "window": lambda scan: None,
    "none": lambda scan: 0.0,
}
"""The gain in decibels of a video's clips by the way of normalising; None: every clip to the same peak."""
WORKER_BYTES = 1 << 30
"""Memory that a process may need for the pictures of one video."""
MAX_WORKERS = 1024
MAX_TIMEOUT = 1e6
"""Longest time limit in seconds; the system waits for no more than about twice as many."""


@dataclass(frozen=True)
class SplitSettings:
    """How a folder becomes a table of clips."""

    scan: ScanSettings = field(default_factory=ScanSettings)
    rules: FilterRules = field(default_factory=FilterRules)
    val_ratio: float = 0.1
    """Share of the videos for validation; more than 0 means at least one."""
    test_ratio: float = DEFAULT_TEST_RATIO
    """Share of the videos for the test."""
    normalize: str = "video"
    """The way of normalising loudness, of NORMALIZATIONS."""
    prompt: str = ""
    """Caption of the videos without one."""
    captions: Path | None = None
    """A table of captions."""
    keep_all: bool = False
    """Keep clips that break a rule."""
    recursive: bool = False
    """Search sub-folders too."""
    timeout: float | None = None
    """Seconds that scanning one file may take; None: more for a larger file."""
    with_folds: bool = False
    """Whether training has folds: a verdict does not hang on the videos that are held out here."""
    workers: int | None = None
    """Files that are scanned at once; None: one per core, as far as the memory goes."""
    isolated: bool = True
    """Scan in processes of their own, as a file may crash a decoder; false, for known files: here, without a limit."""
    debug: bool = False
    """Show the errors that are raised while a file is scanned."""

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout <= MAX_TIMEOUT:
            raise ConfigError(f"timeout per video {self.timeout:g}: more than 0 s, at most {MAX_TIMEOUT:g}")
        if self.normalize not in NORMALIZATIONS:
            raise ConfigError(f"split.normalize={self.normalize}: {', '.join(NORMALIZATIONS)} are known")
        if self.workers is not None and not 1 <= self.workers <= MAX_WORKERS:
            raise ConfigError(f"--workers {self.workers}: 1 to {MAX_WORKERS} processes; without it, one per core")
        _ = self.ratios

    @property
    def ratios(self) -> SplitRatios:
        """How much is held out; ConfigError where it is not valid."""
        return SplitRatios(self.val_ratio, self.test_ratio, self.scan.seconds)


@dataclass(frozen=True)
class SplitResult:
    """The clips, the files and windows that are left out, and the numbers of files."""

    clips: list[Clip]
    """Empty where nothing can be used."""
    left_out: list[LeftOut]
    file_count: int
    """Files in the folder: `used` plus `unused`."""
    scanned_count: int
    """Files that were scanned in this run; the others had not changed."""
    notes: list[str]
    """Hints for the user about the files and how the clips were split."""
    scans: list[VideoScan] = field(default_factory=list)
    """The scans of all files, of those that are left out too."""

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
    ignored_paths: tuple[Path, ...] = (),
    progress: Callable[[list[Path]], Iterable[Path]] = iter,
    split_store: SplitStore | None = None,
) -> SplitResult:
    """Scan the files in `root` (those that changed since `store` was written) and split their windows.

    With `split_store`, videos stay in the same split from run to run. Raises DataError where there is no folder or no
    file in it, where the table of captions is not valid, or where nothing can be held out.
    """
    captions = Captions(root, settings.prompt, settings.captions)
    files = find_videos(root, ignored_paths, settings.recursive)
    if not files:
        below = " (sub-folders are searched with --recursive)" if any(path.is_dir() for path in root.iterdir()) else ""
        raise DataError(f"{root}: no file in it{below}; a folder of videos is expected")
    videos = [name_in_table(path, root) for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    captions.match_videos(videos)
    scans, scanned_count = _scan_files(root, files, settings, store, progress)
    usable, left_out = _apply_rules(scans, settings)
    divided, notes = _split_usable(usable, settings.ratios, split_store)
    notes += [] if settings.with_folds else _describe_verdict_needs(divided, settings.ratios)
    left_out += _windows_in_gaps(usable, divided)
    left_out.sort(key=lambda row: (row.video, row.start or 0.0))
    by_video = {scan.video: scan for scan in scans}
    clips = build_clips(divided, captions, settings.rules, by_video, NORMALIZATIONS[settings.normalize])
    captions.check_used(videos if clips else [])
    notes = [f"{scan.video}: {scan.note}" for scan in scans if scan.note and scan.video in usable] + notes
    with working("looking for equal videos"):
        notes += _describe_duplicates(root, list(divided))
    if not settings.recursive and (video := find_video_below(root, ignored_paths)):
        notes.append(f"sub-folders hold videos too, such as {video}: --recursive takes them")
    notes += [f"{path.relative_to(root)}: not used as a caption: {why}" for path, why in captions.unreadable.items()]
    notes += _describe_unused_captions(captions, settings.captions)
    return SplitResult(clips, left_out, len(files), scanned_count, notes, scans)


def _scan_files(
    root: Path,
    files: list[Path],
    settings: SplitSettings,
    store: ScanStore,
    progress: Callable[[list[Path]], Iterable[Path]],
) -> tuple[list[VideoScan], int]:
    """One scan per file, and how many of them are new."""
    names = {path: name_in_table(path, root) for path in files}
    scans = {
        path: store.find(path, settings.scan, name) if (root / name) == path else VideoScan(name, "", NAME_REASON)
        for path, name in names.items()
    }
    sizes = {path: _file_size(path) for path, scan in scans.items() if scan is None}
    new = sorted(sizes, key=lambda path: -sizes[path])  # the last one to end shall be short
    workers = max(1, min(len(new), settings.workers or default_workers()))
    threads = max(1, count_cores() // max(1, len(new)))  # not by the workers: a cut file ends by them (FFmpeg)
    calls = [
        ((threads, path, settings.scan, names[path]), settings.timeout or TIMEOUT + TIMEOUT_PER_MB * sizes[path] / 1e6)
        for path in new
    ]
    with ExitStack() as stack:
        results: Iterable[tuple[int, VideoScan | WorkerError]]
        if settings.isolated:
            pool = SubprocessPool(scan_on_threads, workers, quiet=not settings.debug)
            results = stack.enter_context(pool).run(calls)
        else:
            stack.enter_context(limit_codec_threads(threads))
            results = ((number, scan_video(path, settings.scan, names[path])) for number, path in enumerate(new))
        for _, (number, scan) in zip(progress(new), results, strict=True):
            if isinstance(scan, WorkerError):  # not stored: it may succeed on another machine or another day
                scan = VideoScan(names[new[number]], "", str(scan))
            else:
                store.add(scan)
            scans[new[number]] = scan
    return [scan for scan in scans.values() if scan is not None], len(new)


def default_workers() -> int:
    """Processes that scan videos: one per core, as far as the memory goes."""
    return max(1, min(count_cores(), free_memory(torch.device("cpu")) // WORKER_BYTES))


def _file_size(path: Path) -> int:
    return path.stat().st_size if os.path.exists(path) else 0  # noqa: PTH110, Path's own raises in a folder without access


def name_in_table(path: Path, root: Path) -> str:
    """A file's name in the tables: its path below `root`, with replacement characters for what is not UTF-8."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")


def _apply_rules(
    scans: list[VideoScan], settings: SplitSettings
) -> tuple[dict[str, list[MeasuredWindow]], list[LeftOut]]:
    """The usable windows by video, and the files and windows that are left out."""
    usable: dict[str, list[MeasuredWindow]] = {}
    left_out: list[LeftOut] = []
    for scan in scans:
        reasons = [_rejection_reason(window, settings) for window in scan.windows]
        left_out += _left_out_rows(scan, reasons)
        usable[scan.video] = [window for window, reason in zip(scan.windows, reasons, strict=True) if not reason]
    whole_files = {row.video for row in left_out if row.start is None}
    return {video: windows for video, windows in usable.items() if video not in whole_files}, left_out


def _rejection_reason(window: MeasuredWindow, settings: SplitSettings) -> str:
    """Why a window is left out; empty where it is used."""
    return window.reason or ("" if settings.keep_all else "; ".join(settings.rules.find_violations(window)))


def _left_out_rows(scan: VideoScan, reasons: list[str]) -> list[LeftOut]:
    """The rows of one file: one for all of it, or one for each window that is not used."""
    if scan.reason:
        return [LeftOut(scan.video, scan.reason)]
    rows = [
        LeftOut(scan.video, reason, window.start, window.end)
        for window, reason in zip(scan.windows, reasons, strict=True)
        if reason
    ]
    if len(rows) < len(reasons):
        return rows
    kinds = Counter(reason_kind(row.reason) for row in rows)
    if len(rows) == 1:
        return [LeftOut(scan.video, rows[0].reason)]
    if len(kinds) == 1:
        return [LeftOut(scan.video, f"{next(iter(kinds))} throughout")]
    return [LeftOut(scan.video, "no clip of it: " + ", ".join(f"{n} x {kind}" for kind, n in kinds.most_common()))]


def _split_usable(
    usable: dict[str, list[MeasuredWindow]], ratios: SplitRatios, split_store: SplitStore | None
) -> tuple[dict[str, WindowsBySplit], list[str]]:
    """The windows by video and split, and notes; the result is saved in `split_store`."""
    divided: dict[str, WindowsBySplit] = {}
    notes: list[str] = []
    if usable:
        divided, notes = split_videos(usable, ratios, split_store.splits if split_store else None)
    if split_store is not None:
        split_store.save(divided)
    return divided, notes


def _describe_verdict_needs(divided: dict[str, WindowsBySplit], ratios: SplitRatios) -> list[str]:
    """A note where too few videos are held out for a verdict."""
    splits = [split for by_split in divided.values() for split in by_split]
    held_out = splits.count("test") or splits.count("val")
    needs = describe_verdict_needs(held_out, len(divided), ratios) if divided else []
    return [f"verdict: {needs[0]} {'; '.join(needs[1:])}"] if needs else []


def _windows_in_gaps(usable: dict[str, list[MeasuredWindow]], divided: dict[str, WindowsBySplit]) -> list[LeftOut]:
    """The windows that lie in the gap between two splits of one video."""
    rows = []
    for video, by_split in divided.items():
        used = [window for windows in by_split.values() for window in windows]
        rows += [LeftOut(video, GAP_REASON, window.start, window.end) for window in usable[video] if window not in used]
    return rows


def _describe_duplicates(root: Path, videos: list[str]) -> list[str]:
    """A note on every video that equals an earlier one byte for byte."""
    notes: list[str] = []
    by_size: dict[int, list[str]] = {}
    for video in sorted(videos):
        candidates = by_size.setdefault((root / video).stat().st_size, [])
        duplicate = next((name for name in candidates if filecmp.cmp(root / name, root / video, shallow=False)), None)
        if duplicate is None:
            candidates.append(video)
        else:
            notes.append(
                f"{video} is the same file as {duplicate}; take one away, or what is held out may be trained on"
            )
    return notes


def _describe_unused_captions(captions: Captions, table: Path | None) -> list[str]:
    """A note on the rows of the table of captions that no clip uses."""
    rows = captions.unused()
    if not rows:
        return []
    first = rows[0].id or rows[0].video
    return [
        f"{table}: {len(rows)} of its {len(captions.rows)} rows name no clip that is used, or one that "
        f"another row names more exactly, as {first}"
    ]
