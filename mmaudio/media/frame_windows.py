"""The frames of many windows of a video, at several rates, in one decoding pass.

Decoding goes on while other threads convert and resize: a bounded number of frames is on the way. Memory holds the
windows that overlap, not the video. Times are those of `data.video`.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any

import av
from av.video.reformatter import VideoReformatter
from torch import Tensor

from mmaudio.errors import DataError
from mmaudio.media.frames import to_rgb
from mmaudio.media.video import TOLERANCE, VideoInfo, decoded, frame_time, opened, picture_stream

MOST_WORKERS = 8
"""Threads that convert and resize, where there are so many processor cores."""
WAITING = 3
"""Decoded frames per such thread that may wait for it."""
Made = dict[int, Tensor]
"""A frame as each grid that takes it wants it."""


@dataclass(frozen=True)
class Grid:
    """What a window takes from the picture: `count` frames at `rate` per second, each through `transform`."""

    rate: int
    count: int
    transform: Callable[[Tensor], Tensor]
    """RGB uint8 (1, 3, H, W) -> (1, ...); called in several threads."""

    @property
    def last(self) -> float:
        """The last instant in seconds from the window's start."""
        return (self.count - 1) / self.rate


@dataclass
class Window:
    """The frames of one window, per grid, with the source time of each in seconds."""

    start: float
    frames: list[list[Tensor]]
    times: list[list[float]]


def read_windows(
    info: VideoInfo, starts: Sequence[float], grids: Sequence[Grid], workers: int | None = None
) -> Iterator[Window]:
    """The windows that begin at `starts` (ascending, seconds), one after the other, in one decoding pass.

    A frame that several windows take is transformed once and shared. `workers`: threads that do that, by default one
    per processor core, 8 at most. Raises DataError where the picture ends before a window does.
    """
    drafts = [_Draft(start, grids) for start in starts]
    last: tuple[Any, float] | None = None
    with opened(info.path) as container, _Workshop(info, grids, workers) as shop:
        for frame in decoded(container, picture_stream(container, info.path)):
            time = frame_time(frame) - info.origin
            if last is not None and time <= last[1]:
                continue
            last = (frame, time)
            _serve(drafts, shop, frame, time, time)
            while drafts and drafts[0].complete:
                yield drafts.pop(0).finished()
            if not drafts:
                return
        end = 0.0 if last is None else last[1] + 1 / info.fps
        if last is not None:  # it is shown until one frame after it
            _serve(drafts, shop, *last, end - 2 * TOLERANCE)
        for draft in drafts:
            if not draft.complete:
                raise DataError(
                    f"{info.path.name}: the picture ends at {end:.2f} s, the clip at {draft.start:g} s needs more"
                )
            yield draft.finished()


class _Draft:
    """A window whose frames are in work."""

    def __init__(self, start: float, grids: Sequence[Grid]) -> None:
        self.start, self.grids = start, grids
        self.frames: list[list[Future[Made]]] = [[] for _ in grids]
        self.times: list[list[float]] = [[] for _ in grids]

    def lacking(self, until: float) -> list[int]:
        """How many instants up to the time `until` have no frame yet, per grid."""
        due = [math.floor((until - self.start + TOLERANCE) * grid.rate) + 1 for grid in self.grids]
        return [
            max(0, min(grid.count, number) - len(times))
            for grid, number, times in zip(self.grids, due, self.times, strict=True)
        ]

    def take(self, counts: Sequence[int], made: Future[Made], time: float) -> None:
        """Let the frame of `time` stand for so many instants of each grid."""
        for frames, times, count in zip(self.frames, self.times, counts, strict=True):
            frames += [made] * count
            times += [time] * count

    @property
    def complete(self) -> bool:
        """Whether every instant has its frame."""
        return all(len(times) == grid.count for times, grid in zip(self.times, self.grids, strict=True))

    def finished(self) -> Window:
        """The window, once its frames are made."""
        frames = [[made.result()[number] for made in row] for number, row in enumerate(self.frames)]
        return Window(self.start, frames, self.times)


def _serve(drafts: Sequence[_Draft], shop: _Workshop, frame: Any, time: float, until: float) -> None:
    """Let the frame of `time` stand for all instants up to `until` that have no frame yet."""
    begun = takewhile(lambda draft: draft.start <= until + TOLERANCE, drafts)
    counts = [(draft, draft.lacking(until)) for draft in begun]
    wanted = {number for _, row in counts for number, count in enumerate(row) if count}
    if wanted:
        made = shop.make(frame, wanted)
        for draft, row in counts:
            draft.take(row, made, time)


class _Workshop:
    """The threads that make of decoded frames what the grids want; only so many frames wait for them."""

    def __init__(self, info: VideoInfo, grids: Sequence[Grid], workers: int | None) -> None:
        self.info, self.grids = info, grids
        self.workers = workers or min(MOST_WORKERS, os.cpu_count() or 1)
        self.pool = ThreadPoolExecutor(self.workers, "frames")
        self.waiting: deque[Future[Made]] = deque()
        self.own = threading.local()

    def make(self, frame: Any, wanted: set[int]) -> Future[Made]:
        """Have `frame` made for the grids number `wanted`."""
        if len(self.waiting) >= WAITING * self.workers:
            self.waiting.popleft().result()
        made = self.pool.submit(self._made, frame, wanted)
        self.waiting.append(made)
        return made

    def _made(self, frame: Any, wanted: set[int]) -> Made:
        if not hasattr(self.own, "reformatter"):  # it keeps tables and is for one thread
            self.own.reformatter = VideoReformatter()
        try:
            rgb = to_rgb(frame, self.own.reformatter, self.info.pixel)[None]
        except av.FFmpegError as error:
            kind = f"{self.info.codec}, {frame.format.name}"
            raise DataError(f"{self.info.path.name}: its picture ({kind}) cannot be converted") from error
        return {number: self.grids[number].transform(rgb)[0] for number in wanted}

    def __enter__(self) -> _Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=True)
