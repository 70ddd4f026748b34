"""Statistics of a whole video stream in one decoding pass: where it is continuous, black or frozen, and its shot cuts.

Times are those of `media.video`: seconds from the first frame; each frame counts once (`media.frame_times`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from mmaudio.media.frame_times import FrameOrder, frame_time
from mmaudio.media.video import VideoInfo, read_frames

CHECKS_PER_SECOND = 4
"""How often a frame is compared with earlier ones."""
THUMBNAIL_SIDE = 48
"""Width and height of the thumbnails that are compared; each pixel is the mean of its area of the frame."""
BLACK_LEVEL = 24
"""A frame none of whose thumbnail's pixels is above this, of 255, is black."""
FROZEN_LEVELS = 2
"""A thumbnail whose pixels all stay within so many levels has not changed: compression alone moves them that much."""
CUT_SIZE = (160, 90)
"""Width and height of the frames that a cut detector receives."""
Interval = tuple[float, float]
"""Start and end in seconds."""
CutDetector = Callable[[float, npt.NDArray[np.uint8]], list[float]]
"""Called with the time and the small BGR image of each frame in order; returns the times of new cuts."""


@dataclass
class VideoTimeline:
    """Properties of a video stream over time; seconds from the first frame."""

    continuous: list[Interval] = field(default_factory=list)
    """Where it has no gap: the times of the first and the last frame; the last interval ends one frame later."""
    black: list[Interval] = field(default_factory=list)
    frozen: list[Interval] = field(default_factory=list)
    cuts: list[float] = field(default_factory=list)
    """Where a new shot begins."""
    restart: float | None = None
    """Where the time stamps jump back; what follows is ignored, as its audio would not be in sync."""
    moved_frames: int = 0
    """Frames out of turn that were put in their places."""
    dropped_frames: int = 0
    """Frames that are not used because others had their instants before."""

    @property
    def end(self) -> float:
        """Where the video stream ends."""
        return self.continuous[-1][1] if self.continuous else 0.0


def measure_video(info: VideoInfo, max_gap: float, cut_detector: CutDetector | None = None) -> VideoTimeline:
    """Decode the video stream once. Frames more than `max_gap` seconds apart have a gap between them."""
    timeline, monitor, reformatter = VideoTimeline(), _StillnessMonitor(), VideoReformatter()
    intervals = timeline.continuous
    order = FrameOrder(info.timing, info.fps, max_gap)
    for frame in read_frames(info, order, for_scan=True):
        time = frame_time(frame) - info.start_time
        if intervals and time - intervals[-1][1] <= max_gap:
            intervals[-1] = (intervals[-1][0], time)
        else:
            intervals.append((time, time))
        monitor.add_frame(time, frame)
        if cut_detector is not None:
            small: Any = reformatter.reformat(frame, *CUT_SIZE, format="bgr24")
            timeline.cuts += cut_detector(time, small.to_ndarray())
    if order.is_restarted:
        timeline.restart = timeline.end
    if intervals:
        intervals[-1] = (intervals[-1][0], intervals[-1][1] + 1 / info.fps)
        monitor.finish(timeline.end)
    timeline.black, timeline.frozen = monitor.black, monitor.frozen
    timeline.moved_frames, timeline.dropped_frames = order.moved, order.dropped
    return timeline


class _StillnessMonitor:
    """Intervals in which the frames are black or do not change, from `CHECKS_PER_SECOND` thumbnails a second."""

    def __init__(self) -> None:
        self.black: list[Interval] = []
        self.frozen: list[Interval] = []
        self._reformatter = VideoReformatter()
        self._reference: npt.NDArray[np.int16] | None = None
        """The thumbnail since which nothing has changed."""
        self._last_check, self._is_black = 0.0, False

    def add_frame(self, time: float, frame: Any) -> None:
        """Check the frame that is shown from `time` on, if the last check is long enough ago."""
        if self._reference is not None and time < self._last_check + 1 / CHECKS_PER_SECOND - 1e-3:
            return
        reduced = self._reformatter.reformat(
            frame, width=THUMBNAIL_SIDE, height=THUMBNAIL_SIDE, format="rgb24", interpolation="AREA"
        )
        thumbnail = reduced.to_ndarray().astype(np.int16)
        if self._reference is not None:
            if int(np.abs(thumbnail - self._reference).max()) <= FROZEN_LEVELS:
                _extend(self.frozen, (self._last_check, time))
                thumbnail = self._reference
            if self._is_black:
                _extend(self.black, (self._last_check, time))
        self._reference, self._last_check, self._is_black = thumbnail, time, int(thumbnail.max()) <= BLACK_LEVEL

    def finish(self, end: float) -> None:
        """Let the last frame last until `end`."""
        if self._is_black:
            _extend(self.black, (self._last_check, end))
        if self.frozen and self.frozen[-1][1] == self._last_check:
            _extend(self.frozen, (self._last_check, end))


def _extend(intervals: list[Interval], new: Interval) -> None:
    """Append `new`, merged with the last interval where they touch."""
    if intervals and intervals[-1][1] >= new[0]:
        intervals[-1] = (intervals[-1][0], new[1])
    else:
        intervals.append(new)


def overlap_share(intervals: list[Interval], start: float, end: float) -> float:
    """Share of the time from `start` to `end` that lies in `intervals`."""
    inside = sum(max(0.0, min(high, end) - max(low, start)) for low, high in intervals)
    return inside / (end - start)
