"""Presentation times of decoded frames: every frame counts once, at the instant at which a player shows it.

The presentation stamps of a file are used where they rise from frame to frame. AVI has none, and files that were copied
from AVI or WMV have those of another order; there the decoding stamps give the times, and the frame rate where these
are absent, too. `detect_timing` decides that for a file from its first frames, so that every reading decides the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, takewhile
from typing import Any

PRESENTATION, DECODING, RATE = "presentation stamps", "decoding stamps", "frame rate"
"""What gives the times of a file's frames."""
CHECKED_FRAMES = 48
"""Frames from which the timing of a file is detected."""
MIN_FAULTS_PER_FRAME = 1 / 12
"""Share of steps back in the presentation stamps above which they count as unordered; a lost packet makes one."""
MAX_REORDERED = 16
"""Frames that a decoder holds back at most."""
LOOKAHEAD = 8
"""Frames after one out of turn that are decoded before its place is decided."""
MAX_STEP_BACK = 1.0
"""Seconds by which time stamps that stay back begin anew."""
CONTINUES = 1.5
"""A frame that follows within so many frame durations continues the stream: there is no room for another one."""
MAX_ROUNDING = 0.001
"""Seconds by which a new time stamp may be rounded."""
FINE_TIME_BASE = Fraction(1, 1_000_000)
"""For new time stamps that the stream's own time base cannot express."""


@dataclass(frozen=True)
class Timing:
    """What gives the times of a file's frames."""

    source: str = PRESENTATION
    """PRESENTATION, DECODING or RATE."""
    delay: int = 0
    """DECODING: from a packet's stamp to that of the packet that releases its frame, in units of the time base."""
    lead: int = 0
    """DECODING and RATE: from the time at which the first frame is shown to its stamp."""

    def describe(self) -> str:
        """A note on time stamps that are not right; empty where they are."""
        is_right = self.source == PRESENTATION or (self.source == DECODING and not self.delay)
        return "" if is_right else f"time stamps out of order: its frames are timed by {self.source}"


def frame_time(frame: Any) -> float:
    """Time stamp of a frame in seconds."""
    timestamp = frame.pts if frame.pts is not None else frame.dts
    base = frame.time_base
    return float((timestamp or 0) * base.numerator / base.denominator)  # as exact as a product of fractions, and fast


def stamp_of(frame: Any, timing: Timing) -> int | None:
    """The time stamp of a decoded frame by the file's timing; None where it has none."""
    if timing.source == DECODING:
        return None if frame.dts is None else int(frame.dts) - timing.lead
    stamp: int | None = frame.pts if frame.pts is not None else frame.dts
    return stamp if stamp is None else stamp - timing.lead


def packet_stamp(packet: Any, timing: Timing) -> int | None:
    """The time stamp of a packet by the file's timing, on the axis of its frames; None where it has none."""
    if timing.source == DECODING:
        return None if packet.dts is None else int(packet.dts) + timing.delay - timing.lead
    stamp: int | None = packet.pts if packet.pts is not None else packet.dts
    return stamp if stamp is None else stamp - timing.lead


@dataclass(frozen=True)
class Stamps:
    """Time stamps of a stream's first frames, in the order in which the decoder passes them on."""

    presentation: list[int | None]
    decoding: list[int | None]
    """Of the packet with which the decoder released each frame."""
    packet_times: dict[int, int | None]
    """The decoding stamp of every packet by its presentation stamp."""


def detect_timing(stamps: Stamps, is_avi: bool, frame_ticks: float, sound_start: float | None) -> Timing:
    """Detect what gives the times of a file's frames; `frame_ticks` are the units of the time base in a frame.

    In an AVI the picture begins with its first packet, however many frames the decoder holds back. A file with such
    stamps that is none was copied from one: its picture begins with its sound, at `sound_start`, where that is near.
    """
    presentation, decoding = stamps.presentation, stamps.decoding
    if len(presentation) > 1 and not any(stamp is not None for stamp in presentation[1:] + decoding[1:]):
        return Timing(RATE)
    first_packet = None if presentation[0] is None else stamps.packet_times.get(presentation[0])
    delay = 0 if first_packet is None or decoding[0] is None else decoding[0] - first_packet
    if is_avi and decoding[0] is not None:
        return Timing(DECODING, delay, delay)
    faults = _count_faults(presentation)
    if faults < 2 or faults < MIN_FAULTS_PER_FRAME * len(presentation):
        return Timing()
    if decoding[0] is None or _count_faults(decoding) >= faults:
        return Timing(RATE, lead=_find_lead(presentation[0], frame_ticks, sound_start))
    return Timing(DECODING, delay, _find_lead(decoding[0], frame_ticks, sound_start))


def _find_lead(first_stamp: int | None, frame_ticks: float, sound_start: float | None) -> int:
    """`Timing.lead`, whole frames, of a picture whose first frame has `first_stamp` and that begins with its sound."""
    if first_stamp is None or sound_start is None:
        return 0
    frames = round((first_stamp - sound_start) / frame_ticks)
    return round(frames * frame_ticks) if abs(frames) <= MAX_REORDERED else 0


def _count_faults(stamps: list[int | None]) -> int:
    """The number of time stamps that do not rise; absent ones do not count."""
    return sum(later <= earlier for earlier, later in pairwise(s for s in stamps if s is not None))


class FrameOrder:
    """Passes on decoded frames with rising presentation stamps; those that rise already stay as they are.

    A frame that the decoder passes on too early, as after lost packets, is put in its place. One whose time stamp is
    wrong gets a time between its neighbours'. Frames whose instants others had before, as where segments overlap, are
    left out. Where the time stamps stay back by more than `max_step_back` seconds, they begin anew, and the frames end.
    """

    def __init__(self, timing: Timing, fps: float, max_step_back: float = MAX_STEP_BACK) -> None:
        self.timing, self.max_step_back = timing, max_step_back
        self.moved = 0
        """Frames that were put in another place, or got another time than their stamp in a file with right ones."""
        self.dropped = 0
        """Frames whose instant another one had before."""
        self.is_restarted = False
        """Whether the time stamps begin anew."""
        self._duration = 1 / fps
        self._waiting: list[Any] = []
        self._last_time: float | None = None
        """Of the last frame that was passed on."""
        self._last_stamp: float | None = None
        """Of the last decoded frame."""
        self._interval = self._duration
        """The last one between two decoded frames."""

    def sort(self, frames: Iterable[Any]) -> Iterator[Any]:
        """The frames in order; a few are held back where one is out of turn."""
        for number, frame in enumerate(frames):
            self._stamp(frame, number)
            self._waiting.append(frame)
            yield from self._release(at_end=False)
            if self.is_restarted:
                return
        yield from self._release(at_end=True)

    def _stamp(self, frame: Any, number: int) -> None:
        """Set the presentation stamp of the frame that is decoded next by the file's timing."""
        stamp = None if self.timing.source == RATE and number else stamp_of(frame, self.timing)
        if stamp is not None:
            frame.pts = stamp
        else:
            _set_time(frame, 0.0 if self._last_stamp is None else self._last_stamp + self._interval)
        time = frame_time(frame)
        if stamp is not None and self._last_stamp is not None and time > self._last_stamp:
            self._interval = time - self._last_stamp
        self._last_stamp = time

    def _release(self, at_end: bool) -> Iterator[Any]:
        """The waiting frames whose turn it is."""
        while self._waiting and not self.is_restarted:
            time = frame_time(self._waiting[0])
            if self._last_time is None or 0 < time - self._last_time <= CONTINUES * self._duration:
                frame = self._waiting.pop(0)
            elif len(self._waiting) <= LOOKAHEAD and not at_end:
                return
            else:
                times = [frame_time(frame) for frame in self._waiting]
                frame = self._next_after_jump(times) if time > self._last_time else self._next_after_step_back(times)
            if frame is not None:
                self._last_time = frame_time(frame)
                yield frame

    def _next_after_jump(self, times: list[float]) -> Any:
        """The frame that is next where the first one waiting leaves a gap; `times` are those of the waiting frames."""
        assert self._last_time is not None
        earlier = [time for time in times[1:] if self._last_time < time < times[0]]
        if not earlier:
            return self._waiting.pop(0)
        self.moved += 1
        if times[0] < times[-1]:  # it came before its turn
            return self._waiting.pop(times.index(min(earlier)))
        wrong = sum(1 for _ in takewhile(lambda time: time > times[-1], times))
        return self._set_between(wrong, next((time for time in times[wrong:] if time > self._last_time), times[0]))

    def _next_after_step_back(self, times: list[float]) -> Any | None:
        """The first frame waiting, in its place between its neighbours; None where there is no place for it."""
        last_time = self._last_time
        assert last_time is not None
        late = sum(1 for _ in takewhile(lambda time: time <= last_time, times))
        if late < len(times) and times[late] - last_time > CONTINUES * self._duration:
            self.moved += 1
            return self._set_between(late, times[late])
        if late == len(times) and last_time - times[0] > self.max_step_back:
            self.is_restarted = True
            return None
        self.dropped += 1
        self._waiting.pop(0)
        return None

    def _set_between(self, count: int, next_time: float) -> Any:
        """The first of `count` frames waiting that are spread evenly until `next_time`."""
        assert self._last_time is not None
        frame = self._waiting.pop(0)
        _set_time(frame, self._last_time + (next_time - self._last_time) / (count + 1))
        return frame


def _set_time(frame: Any, seconds: float) -> None:
    """Set a frame's presentation stamp, in a finer time base where that of its stream is too coarse."""
    ticks = seconds / frame.time_base
    if abs(ticks - round(ticks)) * frame.time_base > MAX_ROUNDING:
        frame.time_base = FINE_TIME_BASE
    frame.pts = round(seconds / frame.time_base)
