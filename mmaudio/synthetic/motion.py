"""How things move, in closed form: each motion gives the pose at any time, and when it is heard.

Places are in units of the picture's side, (0, 0) at the top left. Times are in seconds from the scene's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BORDER = 0.05
"""Thickness of the walls around the picture."""
GRAVITY = 5.2
"""Sides per second squared."""
LONGEST_HOP = 0.9
"""Seconds in the air; whoever has longer until the next landing rests first."""


@dataclass(frozen=True)
class Event:
    """Something that is heard at one instant."""

    time: float
    strength: float
    """Amplitude, 0..1."""


@dataclass(frozen=True)
class Pose:
    """Where and how something is, at T times: every field is (T,)."""

    x: Array
    y: Array
    angle: Array
    """Radians."""
    glow: Array
    """Brightness of its colour, 1 as it is."""


class Motion(Protocol):
    """What a scene needs to know of a motion."""

    @property
    def events(self) -> tuple[Event, ...]:
        """What is heard, in order of time."""
        ...

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        ...

    def loudness(self, times: Array) -> Array | None:
        """Amplitude (T,) of a sound that goes on, None for motions without one."""
        ...


@dataclass(frozen=True)
class Hop:
    """Parabolic hops that end on a wall at given times, with rests between them where the gaps are long."""

    landings: tuple[float, ...]
    wall: int
    """0 floor, 1 right, 2 ceiling, 3 left."""
    place: float
    """Where along the wall, 0..1."""
    sway: float
    """How far the place wanders along the wall."""
    radius: float

    def _hops(self) -> tuple[Array, Array, Array]:
        """Take-off times, durations and heights (K,) of the hop before each landing."""
        landings = np.asarray(self.landings)
        gaps = np.diff(landings, prepend=landings[:1] - LONGEST_HOP)
        durations = np.minimum(gaps, LONGEST_HOP)
        return landings - durations, durations, GRAVITY * durations**2 / 8

    @property
    def events(self) -> tuple[Event, ...]:
        """A hit at every landing, louder from higher up."""
        _, durations, _ = self._hops()
        return tuple(Event(t, 0.35 + 0.65 * d / LONGEST_HOP) for t, d in zip(self.landings, durations, strict=True))

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        starts, durations, heights = self._hops()
        k = np.minimum(np.searchsorted(np.asarray(self.landings), times), len(starts) - 1)
        u = np.clip((times - starts[k]) / durations[k], 0.0, 1.0)
        away = BORDER + self.radius + heights[k] * 4 * u * (1 - u)
        along = self.place + self.sway * np.sin(1.1 * times + 5 * self.place)
        x, y = ((along, 1 - away), (1 - away, along), (along, away), (away, along))[self.wall]
        return Pose(x, y, np.zeros_like(times), np.ones_like(times))

    def loudness(self, times: Array) -> Array | None:
        """Silent between the hits."""
        return None


@dataclass(frozen=True)
class Glide:
    """Straight lines that reflect at the walls."""

    start: tuple[float, float]
    """Place at time 0."""
    velocity: tuple[float, float]
    """Sides per second."""
    radius: float
    seconds: float
    """How long it is watched."""

    def _room(self) -> tuple[float, float]:
        """Lowest and highest coordinate of the centre."""
        return BORDER + self.radius, 1 - BORDER - self.radius

    @property
    def events(self) -> tuple[Event, ...]:
        """A hit at every reflection, louder at a higher speed."""
        low, high = self._room()
        found = []
        for start, speed in zip(self.start, self.velocity, strict=True):
            first, last = sorted(((start - low) / (high - low), (start + speed * self.seconds - low) / (high - low)))
            for wall in range(int(np.ceil(first)), int(np.floor(last)) + 1):
                time = (low + wall * (high - low) - start) / speed
                found.append(Event(float(time), float(min(1.0, 0.35 + 0.6 * abs(speed)))))
        return tuple(sorted(found, key=lambda event: event.time))

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        low, high = self._room()
        x, y = (
            low + (high - low) * (1 - np.abs(np.mod((s + v * times - low) / (high - low), 2.0) - 1))
            for s, v in zip(self.start, self.velocity, strict=True)
        )
        return Pose(x, y, np.zeros_like(times), np.ones_like(times))

    def loudness(self, times: Array) -> Array | None:
        """Silent between the hits."""
        return None


@dataclass(frozen=True)
class Switch:
    """Stands still and switches between dark and bright, with a click each time."""

    times: tuple[float, ...]
    place: tuple[float, float]
    bright_first: bool

    @property
    def events(self) -> tuple[Event, ...]:
        """A click at every switching."""
        return tuple(Event(time, 0.8) for time in self.times)

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        count = np.searchsorted(np.asarray(self.times), times, side="right")
        bright = (count + int(self.bright_first)) % 2 == 1
        still = np.ones_like(times)
        return Pose(self.place[0] * still, self.place[1] * still, 0 * still, np.where(bright, 1.0, 0.3))

    def loudness(self, times: Array) -> Array | None:
        """Silent between the clicks."""
        return None


@dataclass(frozen=True)
class Spin:
    """Turns in its place and hums, loudest while it stands upright."""

    place: tuple[float, float]
    turns: float
    """Turns per second."""
    phase: float
    """Angle at time 0 in radians, 0 upright."""

    @property
    def events(self) -> tuple[Event, ...]:
        """None: its sound goes on."""
        return ()

    def _angle(self, times: Array) -> Array:
        return self.phase + 2 * np.pi * self.turns * times

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        still = np.ones_like(times)
        return Pose(self.place[0] * still, self.place[1] * still, self._angle(times), still)

    def loudness(self, times: Array) -> Array | None:
        """Between 0.04 lying and 0.4 upright."""
        upright: Array = 0.04 + 0.36 * np.cos(self._angle(times)) ** 2
        return upright


@dataclass(frozen=True)
class Drift:
    """Floats about and is never heard."""

    centre: tuple[float, float]
    reach: tuple[float, float]
    speed: tuple[float, float]
    """Radians per second."""

    @property
    def events(self) -> tuple[Event, ...]:
        """None."""
        return ()

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        x = self.centre[0] + self.reach[0] * np.sin(self.speed[0] * times + 7 * self.centre[1])
        y = self.centre[1] + self.reach[1] * np.sin(self.speed[1] * times + 7 * self.centre[0])
        return Pose(x, y, np.zeros_like(times), np.ones_like(times))

    def loudness(self, times: Array) -> Array | None:
        """Silent."""
        return None
