"""Scenes: a few objects in front of a background, drawn at random from a domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmaudio.synthetic.domains import Colour, Domain, Kind
from mmaudio.synthetic.motion import BORDER, LONGEST_HOP, Drift, Event, Glide, Hop, Motion, Spin, Switch

RADII = (0.085, 0.15)
"""Smallest and largest radius of an object, in sides of the picture."""


@dataclass(frozen=True)
class Actor:
    """One object and its motion."""

    kind: Kind
    radius: float
    motion: Motion

    @property
    def heard(self) -> bool:
        """Whether it makes a sound at all."""
        return not isinstance(self.motion, Drift)


@dataclass(frozen=True)
class Scene:
    """What is seen and heard for some seconds."""

    actors: tuple[Actor, ...]
    top: Colour
    """Background colour at the top, blending into `bottom`."""
    bottom: Colour
    wall: Colour
    seconds: float

    @property
    def events(self) -> tuple[Event, ...]:
        """The events of all actors within the scene's time, in order."""
        found = (event for actor in self.actors for event in actor.motion.events)
        return tuple(sorted((e for e in found if 0 <= e.time < self.seconds), key=lambda event: event.time))

    @property
    def caption(self) -> str:
        """What is heard, in words: `a red ball bouncing and a blue lamp switching`."""
        words = {"strike": "bouncing", "switch": "switching", "spin": "humming"}
        heard = [f"{actor.kind.name} {words[actor.kind.motion]}" for actor in self.actors if actor.heard]
        parts = [f"{'an' if what[0] in 'aeiou' else 'a'} {what}" for what in heard]
        return " and ".join(parts)


def event_times(seconds: float, rate: float, generator: np.random.Generator) -> tuple[float, ...]:
    """Times of the hits of one object: runs of dying bounces, steady beats and single hits, with silence between.

    `rate` is about how many there are in a second. There is at least one.
    """
    times: list[float] = []
    now = float(generator.uniform(0.1, 1.5 / rate))
    while now < seconds:
        style = generator.integers(4)
        gap = float(generator.uniform(0.45, LONGEST_HOP))
        shrink = float(generator.uniform(0.72, 0.9)) if style == 0 else 1.0
        count = 1 if style == 1 else int(generator.integers(2, 6))
        for _ in range(count):
            times.append(now)
            gap = gap * shrink if style < 3 else float(generator.uniform(0.25, 1.2))
            if gap < 0.16:
                break
            now += gap
        now += float(generator.exponential(1.0 / rate))
    return tuple(t for t in times if t < seconds) or (float(generator.uniform(0.3, 0.9)) * seconds,)


def _place(generator: np.random.Generator, margin: float) -> tuple[float, float]:
    x, y = generator.uniform(margin, 1 - margin, 2)
    return float(x), float(y)


def _struck_motion(radius: float, rate: float, seconds: float, generator: np.random.Generator) -> Motion:
    """A hopping or, less often, a gliding motion."""
    if generator.random() < 0.25:
        angle, speed = generator.uniform(0.1, 2 * np.pi), generator.uniform(0.25, 0.6) * (0.5 + rate / 2)
        start = _place(generator, BORDER + radius + 0.01)
        return Glide(start, (float(speed * np.cos(angle)), float(speed * np.sin(angle))), radius, seconds)
    wall = int(generator.choice(4, p=(0.6, 0.14, 0.12, 0.14)))
    sway = float(generator.uniform(0.0, 0.15))
    margin = BORDER + radius + sway
    place = float(generator.uniform(margin, 1 - margin))
    return Hop(event_times(seconds, rate, generator), wall, place, sway, radius)


def actor_of(kind: Kind, rate: float, seconds: float, generator: np.random.Generator) -> Actor:
    """An object of that kind that moves as its kind does; `rate`: about its events per second."""
    radius = float(generator.uniform(*RADII))
    if kind.motion == "switch":
        times = event_times(seconds, 0.8 * rate, generator)
        return Actor(kind, radius, Switch(times, _place(generator, BORDER + radius), bool(generator.random() < 0.5)))
    if kind.motion == "spin":
        radius *= 1.5
        turns = float(generator.uniform(0.12, 0.5) * generator.choice((-1, 1)))
        place = _place(generator, BORDER + radius)
        return Actor(kind, radius, Spin(place, turns, float(generator.uniform(0, np.pi))))
    return Actor(kind, radius, _struck_motion(radius, rate, seconds, generator))


def drifting(kind: Kind, generator: np.random.Generator) -> Actor:
    """An object that floats about in silence."""
    reach, speed = generator.uniform(0.05, 0.25, 2), generator.uniform(0.3, 2.0, 2)
    motion = Drift(_place(generator, 0.35), (float(reach[0]), float(reach[1])), (float(speed[0]), float(speed[1])))
    return Actor(kind, float(generator.uniform(*RADII)), motion)


def stage(domain: Domain, actors: Sequence[Actor], seconds: float, generator: np.random.Generator) -> Scene:
    """The scene of those actors in front of one of the domain's backgrounds."""
    base = np.asarray(domain.backgrounds[int(generator.integers(len(domain.backgrounds)))])
    top, bottom = (np.clip(base * generator.uniform(0.7, 1.3) + generator.uniform(-0.04, 0.04, 3), 0, 1) for _ in "tb")
    wall = np.clip(base * 0.5 if base.mean() > 0.4 else base * 1.5 + 0.12, 0, 1)
    colours = [(float(c[0]), float(c[1]), float(c[2])) for c in (top, bottom, wall)]
    return Scene(tuple(actors), colours[0], colours[1], colours[2], seconds)


def random_scene(domain: Domain, seconds: float, generator: np.random.Generator) -> Scene:
    """One to three objects: half the scenes have one that hits, others two, a switch or something that hums."""

    def pick(motion: str) -> Kind:
        kinds = domain.of(motion)
        return kinds[int(generator.integers(len(kinds)))]

    mix = ("strike",), ("strike", "strike"), ("switch",), ("strike", "switch"), ("spin",), ("strike", "spin")
    motions = mix[int(generator.choice(len(mix), p=(0.37, 0.22, 0.11, 0.08, 0.1, 0.12)))]
    rate = float(generator.choice((0.3, 0.7, 1.2))) / len(motions) ** 0.5
    actors = [actor_of(pick(motion), rate, seconds, generator) for motion in motions]
    if generator.random() < 0.15:
        actors.append(drifting(pick("strike"), generator))
    return stage(domain, actors, seconds, generator)
