"""Motions in closed form: the pose at any time, the events, and the loudness of a continuous sound.

Positions are in units of the picture's side, (0, 0) at the top left. Times are in seconds from the scene's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

WALL_THICKNESS = 0.05
"""Thickness of the walls around the picture."""
GRAVITY = 5.2
"""Sides per second squared."""
MAX_HOP_SECONDS = 0.9
"""Longest time in the air; where the next landing is further away, the object rests first."""


@dataclass(frozen=True)
class Event:
    """A strike or a switch at one instant."""

    time: float
    amplitude: float
    """Amplitude, 0..1."""


@dataclass(frozen=True)
class Pose:
    """Position, angle and brightness of an object at T times: every field is (T,)."""

    x: Array
    y: Array
    angle: Array
    """Radians."""
    glow: Array
    """Brightness of its colour, 1 unchanged."""


class Motion(Protocol):
    """Interface of all motions."""

    @property
    def events(self) -> tuple[Event, ...]:
        """The events in order of time."""
        ...

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        ...

    def loudness(self, times: Array) -> Array | None:
        """Amplitude (T,) of a continuous sound, None for motions without one."""
        ...


@dataclass(frozen=True)
class Hop:
    """Parabolic hops that end on a wall at given times, with rests between them where the gaps are long."""

    landings: tuple[float, ...]
    wall: int
    """0 floor, 1 right, 2 ceiling, 3 left."""
    wall_position: float
    """Position along the wall, 0..1."""
    sway: float
    """Amplitude of the movement along the wall."""
    radius: float

    def _hops(self) -> tuple[Array, Array, Array]:
        """Take-off times, durations and heights (K,) of the hop before each landing."""
        landings = np.asarray(self.landings)
        gaps = np.diff(landings, prepend=landings[:1] - MAX_HOP_SECONDS)
        durations = np.minimum(gaps, MAX_HOP_SECONDS)
        return landings - durations, durations, GRAVITY * durations**2 / 8

    @property
    def events(self) -> tuple[Event, ...]:
        """A strike at every landing, louder after a longer hop."""
        _, durations, _ = self._hops()
        return tuple(Event(t, 0.35 + 0.65 * d / MAX_HOP_SECONDS) for t, d in zip(self.landings, durations, strict=True))

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        starts, durations, heights = self._hops()
        index = np.minimum(np.searchsorted(np.asarray(self.landings), times), len(starts) - 1)
        phase = np.clip((times - starts[index]) / durations[index], 0.0, 1.0)
        distance = WALL_THICKNESS + self.radius + heights[index] * 4 * phase * (1 - phase)
        position = self.wall_position + self.sway * np.sin(1.1 * times + 5 * self.wall_position)
        by_wall = ((position, 1 - distance), (1 - distance, position), (position, distance), (distance, position))
        x, y = by_wall[self.wall]
        return Pose(x, y, np.zeros_like(times), np.ones_like(times))

    def loudness(self, times: Array) -> Array | None:
        """None: silent between the strikes."""
        return None


@dataclass(frozen=True)
class Glide:
    """Straight lines that reflect at the walls."""

    start_position: tuple[float, float]
    """Position at time 0."""
    velocity: tuple[float, float]
    """Sides per second."""
    radius: float
    seconds: float
    """Duration in which reflections count as events."""

    def _centre_range(self) -> tuple[float, float]:
        """Lowest and highest coordinate of the centre."""
        return WALL_THICKNESS + self.radius, 1 - WALL_THICKNESS - self.radius

    @property
    def events(self) -> tuple[Event, ...]:
        """A strike at every reflection, louder at a higher speed."""
        low, high = self._centre_range()
        events = []
        for start, speed in zip(self.start_position, self.velocity, strict=True):
            end = start + speed * self.seconds
            first, last = sorted(((start - low) / (high - low), (end - low) / (high - low)))
            for wall in range(int(np.ceil(first)), int(np.floor(last)) + 1):
                time = (low + wall * (high - low) - start) / speed
                events.append(Event(float(time), float(min(1.0, 0.35 + 0.6 * abs(speed)))))
        return tuple(sorted(events, key=lambda event: event.time))

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        low, high = self._centre_range()
        x, y = (
            low + (high - low) * (1 - np.abs(np.mod((s + v * times - low) / (high - low), 2.0) - 1))
            for s, v in zip(self.start_position, self.velocity, strict=True)
        )
        return Pose(x, y, np.zeros_like(times), np.ones_like(times))

    def loudness(self, times: Array) -> Array | None:
        """None: silent between the strikes."""
        return None


@dataclass(frozen=True)
class Switch:
    """An object at rest that switches between dark and bright, with a click each time."""

    times: tuple[float, ...]
    position: tuple[float, float]
    is_bright_first: bool

    @property
    def events(self) -> tuple[Event, ...]:
        """A click at every switch."""
        return tuple(Event(time, 0.8) for time in self.times)

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        count = np.searchsorted(np.asarray(self.times), times, side="right")
        bright = (count + int(self.is_bright_first)) % 2 == 1
        still = np.ones_like(times)
        return Pose(self.position[0] * still, self.position[1] * still, 0 * still, np.where(bright, 1.0, 0.3))

    def loudness(self, times: Array) -> Array | None:
        """None: silent between the clicks."""
        return None


@dataclass(frozen=True)
class Spin:
    """An object that turns in place and hums, loudest when it is upright."""

    position: tuple[float, float]
    turns_per_second: float
    """Turns per second."""
    phase: float
    """Angle at time 0 in radians, 0 upright."""

    @property
    def events(self) -> tuple[Event, ...]:
        """No events: its sound is continuous."""
        return ()

    def _angle(self, times: Array) -> Array:
        return self.phase + 2 * np.pi * self.turns_per_second * times

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        still = np.ones_like(times)
        return Pose(self.position[0] * still, self.position[1] * still, self._angle(times), still)

    def loudness(self, times: Array) -> Array | None:
        """0.04 when lying to 0.4 when upright."""
        upright: Array = 0.04 + 0.36 * np.cos(self._angle(times)) ** 2
        return upright


@dataclass(frozen=True)
class Drift:
    """A silent object that drifts about a centre."""

    centre: tuple[float, float]
    reach: tuple[float, float]
    speed: tuple[float, float]
    """Radians per second."""

    @property
    def events(self) -> tuple[Event, ...]:
        """No events."""
        return ()

    def pose(self, times: Array) -> Pose:
        """The pose at `times` (T,)."""
        x = self.centre[0] + self.reach[0] * np.sin(self.speed[0] * times + 7 * self.centre[1])
        y = self.centre[1] + self.reach[1] * np.sin(self.speed[1] * times + 7 * self.centre[0])
        return Pose(x, y, np.zeros_like(times), np.ones_like(times))

    def loudness(self, times: Array) -> Array | None:
        """None: silent."""
        return None
