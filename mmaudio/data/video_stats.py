"""The picture of a whole file in one decoding pass: where it is continuous, black, frozen, and where shots change.

Times are those of `data.video`: seconds from the first picture, a frame that steps back in time is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from mmaudio.media.video import VideoInfo, decoded, frame_time, opened, picture_stream

CHECKS = 4
"""Looks at the picture per second of it."""
SIDE = 48
"""Cells of a look, to both sides; each is the mean of its part of the picture."""
DARK = 24
"""A picture none of whose cells is above this, of 255, is black."""
SAME = 2
"""A picture whose cells all stay within so many levels has not changed: compression alone moves them that much."""
Interval = tuple[float, float]
"""From and to, in seconds."""
CutDetector = Callable[[float, npt.NDArray[np.uint8]], list[float]]
"""Takes the time and the small BGR picture of each frame in turn; says at which times a new shot has begun."""
CUT_SIZE = (160, 90)
"""Width and height of what a detector of cuts sees."""


@dataclass
class Timeline:
    """What a picture is like over time; seconds from the first picture."""

    parts: list[Interval] = field(default_factory=list)
    """Where it is continuous: the times of its first and its last frame; the last part ends one frame after."""
    black: list[Interval] = field(default_factory=list)
    frozen: list[Interval] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)
    """Where a new shot begins."""
    restart: float | None = None
    """Where the time stamps jump back; what follows is not looked at, as its sound would not fit."""

    @property
    def end(self) -> float:
        """Where the picture ends."""
        return self.parts[-1][1] if self.parts else 0.0


def watch(info: VideoInfo, max_gap: float, detector: CutDetector | None = None) -> Timeline:
    """Decode the picture once. Frames more than `max_gap` seconds apart have a gap between them."""
    made, watcher, small = Timeline(), _Watcher(), VideoReformatter()
    first = last = 0.0
    for frame in _frames(info):
        time = frame_time(frame) - info.origin
        if made.parts and time < last - max_gap:
            made.restart = last
            break
        if made.parts and time <= last:
            continue
        if not made.parts:
            first, made.parts = time, [(time, time)]
        elif time - last > max_gap:
            made.parts[-1] = (first, last)
            made.parts.append((time, time))
            first = time
        last = time
        watcher.see(time, frame)
        if detector is not None:
            shrunk: Any = small.reformat(frame, *CUT_SIZE, format="bgr24")
            made.cuts += detector(time, shrunk.to_ndarray())
    if made.parts:
        made.parts[-1] = (first, last + 1 / info.fps)
        watcher.finish(made.end)
    made.black, made.frozen = watcher.black, watcher.frozen
    return made


def _frames(info: VideoInfo) -> Iterator[Any]:
    with opened(info.path) as container:
        yield from decoded(container, picture_stream(container, info.path), whole_lines=False)


class _Watcher:
    """Looks at the picture `CHECKS` times a second and keeps the intervals in which it was black or did not change."""

    def __init__(self) -> None:
        self.black: list[Interval] = []
        self.frozen: list[Interval] = []
        self._reformatter = VideoReformatter()
        self._reference: npt.NDArray[np.int16] | None = None
        """The picture since which nothing has changed."""
        self._since, self._dark = 0.0, False

    def see(self, time: float, frame: Any) -> None:
        """Look at the frame that is shown from `time` on, if it is time for a look."""
        if self._reference is not None and time < self._since + 1 / CHECKS - 1e-3:
            return
        reduced = self._reformatter.reformat(frame, width=SIDE, height=SIDE, format="rgb24", interpolation="AREA")
        cells = reduced.to_ndarray().astype(np.int16)
        if self._reference is not None:
            if int(np.abs(cells - self._reference).max()) <= SAME:
                _extend(self.frozen, (self._since, time))
                cells = self._reference
            if self._dark:
                _extend(self.black, (self._since, time))
        self._reference, self._since, self._dark = cells, time, int(cells.max()) <= DARK

    def finish(self, end: float) -> None:
        """The last picture is shown until `end`."""
        if self._dark:
            _extend(self.black, (self._since, end))
        if self.frozen and self.frozen[-1][1] == self._since:
            _extend(self.frozen, (self._since, end))


def _extend(intervals: list[Interval], new: Interval) -> None:
    """Add `new`, joined with the last one where it follows that."""
    if intervals and intervals[-1][1] >= new[0]:
        intervals[-1] = (intervals[-1][0], new[1])
    else:
        intervals.append(new)


def share(intervals: list[Interval], start: float, end: float) -> float:
    """Share of the time from `start` to `end` that lies in `intervals`."""
    inside = sum(max(0.0, min(high, end) - max(low, start)) for low, high in intervals)
    return inside / (end - start)
