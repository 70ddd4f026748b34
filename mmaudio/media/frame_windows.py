"""The frames of many windows of a video, at several frame rates, in one decoding pass.

Other threads convert and resize while decoding goes on; the number of frames in flight is bounded. Memory holds the
windows that overlap, not the video. Times are those of `media.video`.
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
from mmaudio.media.frame_times import frame_time
from mmaudio.media.frames import to_rgb
from mmaudio.media.video import TIME_TOLERANCE, VideoInfo, read_frames

MAX_WORKERS = 8
"""Threads that convert and resize, where there are so many processor cores."""
QUEUED_PER_WORKER = 3
"""Decoded frames per such thread that may wait for it."""
FrameByGrid = dict[int, Tensor]
"""A frame after the transform of each grid that uses it, by the grid's index."""


@dataclass(frozen=True)
class FrameGrid:
    """The instants at which a window is sampled: `count` frames at `fps`, each through `transform`."""

    fps: int
    count: int
    transform: Callable[[Tensor], Tensor]
    """RGB uint8 (1, 3, H, W) -> (1, ...); called in several threads."""

    @property
    def last_time(self) -> float:
        """The last instant in seconds from the window's start."""
        return (self.count - 1) / self.fps


@dataclass
class FrameWindow:
    """The frames of one window, per grid, with the presentation time of each in seconds."""

    start: float
    frames: list[list[Tensor]]
    presentation_times: list[list[float]]


def read_frame_windows(
    info: VideoInfo, starts: Sequence[float], grids: Sequence[FrameGrid], workers: int | None = None
) -> Iterator[FrameWindow]:
    """The windows that begin at `starts` (ascending, seconds), in order, in one decoding pass.

    A frame that several windows use is transformed once and shared. `workers`: threads that do that, by default one
    per processor core, 8 at most. Raises DataError where the video stream ends before a window does.
    """
    pending = [_PendingWindow(start, grids) for start in starts]
    last: tuple[Any, float] | None = None
    with _FrameConverter(info, grids, workers) as converter:
        for frame in read_frames(info):
            time = frame_time(frame) - info.start_time
            last = (frame, time)
            _assign_frame(pending, converter, frame, time, time)
            while pending and pending[0].is_complete:
                yield pending.pop(0).result()
            if not pending:
                return
        end = 0.0 if last is None else last[1] + 1 / info.fps
        if last is not None:  # it is shown until one frame after it
            _assign_frame(pending, converter, *last, end - 2 * TIME_TOLERANCE)
        for window in pending:
            if not window.is_complete:
                raise DataError(
                    f"{info.path.name}: the picture ends at {end:.2f} s, the clip at {window.start:g} s needs more"
                )
            yield window.result()


class _PendingWindow:
    """A window whose frames are being decoded and transformed."""

    def __init__(self, start: float, grids: Sequence[FrameGrid]) -> None:
        self.start, self.grids = start, grids
        self.futures: list[list[Future[FrameByGrid]]] = [[] for _ in grids]
        self.presentation_times: list[list[float]] = [[] for _ in grids]

    def count_missing(self, until: float) -> list[int]:
        """The number of instants up to the time `until` that have no frame yet, per grid."""
        due = [math.floor((until - self.start + TIME_TOLERANCE) * grid.fps) + 1 for grid in self.grids]
        return [
            max(0, min(grid.count, number) - len(times))
            for grid, number, times in zip(self.grids, due, self.presentation_times, strict=True)
        ]

    def append(self, counts: Sequence[int], future: Future[FrameByGrid], time: float) -> None:
        """Use the frame of `time` for so many instants of each grid."""
        for futures, times, count in zip(self.futures, self.presentation_times, counts, strict=True):
            futures += [future] * count
            times += [time] * count

    @property
    def is_complete(self) -> bool:
        """Whether every instant has its frame."""
        return all(len(times) == grid.count for times, grid in zip(self.presentation_times, self.grids, strict=True))

    def result(self) -> FrameWindow:
        """The window, once its frames are transformed."""
        frames = [[future.result()[index] for future in futures] for index, futures in enumerate(self.futures)]
        return FrameWindow(self.start, frames, self.presentation_times)


def _assign_frame(
    pending: Sequence[_PendingWindow], converter: _FrameConverter, frame: Any, time: float, until: float
) -> None:
    """Use the frame of `time` for all instants up to `until` that have no frame yet."""
    begun = takewhile(lambda window: window.start <= until + TIME_TOLERANCE, pending)
    missing = [(window, window.count_missing(until)) for window in begun]
    grid_indices = {index for _, counts in missing for index, count in enumerate(counts) if count}
    if grid_indices:
        future = converter.submit(frame, grid_indices)
        for window, counts in missing:
            window.append(counts, future, time)


class _FrameConverter:
    """Threads that convert decoded frames to RGB and apply the grids' transforms, with a bounded queue."""

    def __init__(self, info: VideoInfo, grids: Sequence[FrameGrid], workers: int | None) -> None:
        self.info, self.grids = info, grids
        self.workers = workers or min(MAX_WORKERS, os.cpu_count() or 1)
        self.pool = ThreadPoolExecutor(self.workers, "frames")
        self.queue: deque[Future[FrameByGrid]] = deque()
        self.thread_local = threading.local()

    def submit(self, frame: Any, grid_indices: set[int]) -> Future[FrameByGrid]:
        """Transform `frame` for these grids in a thread; waits while the queue is full."""
        if len(self.queue) >= QUEUED_PER_WORKER * self.workers:
            self.queue.popleft().result()
        future = self.pool.submit(self._convert, frame, grid_indices)
        self.queue.append(future)
        return future

    def _convert(self, frame: Any, grid_indices: set[int]) -> FrameByGrid:
        if not hasattr(self.thread_local, "reformatter"):  # it caches tables and is not thread-safe
            self.thread_local.reformatter = VideoReformatter()
        try:
            rgb = to_rgb(frame, self.thread_local.reformatter, self.info.pixel_aspect)[None]
        except av.FFmpegError as error:
            kind = f"{self.info.codec}, {frame.format.name}"
            raise DataError(f"{self.info.path.name}: its picture ({kind}) cannot be converted") from error
        return {index: self.grids[index].transform(rgb)[0] for index in grid_indices}

    def __enter__(self) -> _FrameConverter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=True)
