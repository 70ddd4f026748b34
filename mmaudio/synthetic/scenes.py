"""Scenes of a few objects before a background, drawn at random from a domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmaudio.synthetic.domains import Colour, Domain, Kind
from mmaudio.synthetic.motion import MAX_HOP_SECONDS, WALL_THICKNESS, Drift, Event, Glide, Hop, Motion, Spin, Switch

RADII = (0.085, 0.15)
"""Smallest and largest radius of an object, in sides of the picture."""
VERBS = {"strike": "bouncing", "switch": "switching", "spin": "humming"}
"""Verb of a caption for each motion type."""
MOTION_MIXES = (
    (("strike",), 0.37),
    (("strike", "strike"), 0.22),
    (("switch",), 0.11),
    (("strike", "switch"), 0.08),
    (("spin",), 0.1),
    (("strike", "spin"), 0.12),
)
"""Motion types of a random scene's objects, with the probability of each combination."""


@dataclass(frozen=True)
class Actor:
    """One object and its motion."""

    kind: Kind
    radius: float
    motion: Motion

    @property
    def is_audible(self) -> bool:
        """Whether it makes any sound."""
        return not isinstance(self.motion, Drift)


@dataclass(frozen=True)
class Scene:
    """Actors and background for some seconds."""

    actors: tuple[Actor, ...]
    top: Colour
    """Background colour at the top, blending into `bottom`."""
    bottom: Colour
    wall: Colour
    seconds: float

    @property
    def events(self) -> tuple[Event, ...]:
        """The events of all actors within the scene's time, in order."""
        events = (event for actor in self.actors for event in actor.motion.events)
        return tuple(sorted((e for e in events if 0 <= e.time < self.seconds), key=lambda event: event.time))

    @property
    def caption(self) -> str:
        """The audible objects in words: `a red ball bouncing and a blue lamp switching`."""
        return " and ".join(describe_kind(actor.kind) for actor in self.actors if actor.is_audible)


def describe_kind(kind: Kind) -> str:
    """One object in words: `an orange lamp switching`."""
    article = "an" if kind.name[0] in "aeiou" else "a"
    return f"{article} {kind.name} {VERBS[kind.motion_type]}"


def random_event_times(seconds: float, events_per_second: float, generator: np.random.Generator) -> tuple[float, ...]:
    """Event times of one object, at least one: dying bounces, steady beats, single hits, with silence between them.

    `events_per_second` is approximate.
    """
    times: list[float] = []
    time = float(generator.uniform(0.1, 1.5 / events_per_second))
    while time < seconds:
        style = generator.integers(4)
        gap = float(generator.uniform(0.45, MAX_HOP_SECONDS))
        shrink = float(generator.uniform(0.72, 0.9)) if style == 0 else 1.0
        count = 1 if style == 1 else int(generator.integers(2, 6))
        for _ in range(count):
            times.append(time)
            gap = gap * shrink if style < 3 else float(generator.uniform(0.25, 1.2))
            if gap < 0.16:
                break
            time += gap
        time += float(generator.exponential(1.0 / events_per_second))
    return tuple(t for t in times if t < seconds) or (float(generator.uniform(0.3, 0.9)) * seconds,)


def _random_position(generator: np.random.Generator, margin: float) -> tuple[float, float]:
    x, y = generator.uniform(margin, 1 - margin, 2)
    return float(x), float(y)


def _random_strike_motion(
    radius: float, events_per_second: float, seconds: float, generator: np.random.Generator
) -> Motion:
    """A hopping motion, or in a quarter of the cases a gliding one."""
    if generator.random() < 0.25:
        angle, speed = generator.uniform(0.1, 2 * np.pi), generator.uniform(0.25, 0.6) * (0.5 + events_per_second / 2)
        start_position = _random_position(generator, WALL_THICKNESS + radius + 0.01)
        return Glide(start_position, (float(speed * np.cos(angle)), float(speed * np.sin(angle))), radius, seconds)
    wall = int(generator.choice(4, p=(0.6, 0.14, 0.12, 0.14)))
    sway = float(generator.uniform(0.0, 0.15))
    margin = WALL_THICKNESS + radius + sway
    wall_position = float(generator.uniform(margin, 1 - margin))
    return Hop(random_event_times(seconds, events_per_second, generator), wall, wall_position, sway, radius)


def random_actor(kind: Kind, events_per_second: float, seconds: float, generator: np.random.Generator) -> Actor:
    """An object with a random motion of its kind's type; `events_per_second` is approximate."""
    radius = float(generator.uniform(*RADII))
    if kind.motion_type == "switch":
        times = random_event_times(seconds, 0.8 * events_per_second, generator)
        return Actor(
            kind,
            radius,
            Switch(times, _random_position(generator, WALL_THICKNESS + radius), bool(generator.random() < 0.5)),
        )
    if kind.motion_type == "spin":
        radius *= 1.5
        turns_per_second = float(generator.uniform(0.12, 0.5) * generator.choice((-1, 1)))
        position = _random_position(generator, WALL_THICKNESS + radius)
        return Actor(kind, radius, Spin(position, turns_per_second, float(generator.uniform(0, np.pi))))
    return Actor(kind, radius, _random_strike_motion(radius, events_per_second, seconds, generator))


def random_drifting_actor(kind: Kind, generator: np.random.Generator) -> Actor:
    """A silent object that drifts about."""
    reach, speed = generator.uniform(0.05, 0.25, 2), generator.uniform(0.3, 2.0, 2)
    motion = Drift(
        _random_position(generator, 0.35), (float(reach[0]), float(reach[1])), (float(speed[0]), float(speed[1]))
    )
    return Actor(kind, float(generator.uniform(*RADII)), motion)


def build_scene(domain: Domain, actors: Sequence[Actor], seconds: float, generator: np.random.Generator) -> Scene:
    """A scene of the actors before a random one of the domain's backgrounds."""
    colour = np.asarray(domain.backgrounds[int(generator.integers(len(domain.backgrounds)))])
    top, bottom = (
        np.clip(colour * generator.uniform(0.7, 1.3) + generator.uniform(-0.04, 0.04, 3), 0, 1) for _ in "tb"
    )
    wall = np.clip(colour * 0.5 if colour.mean() > 0.4 else colour * 1.5 + 0.12, 0, 1)
    colours = [(float(c[0]), float(c[1]), float(c[2])) for c in (top, bottom, wall)]
    return Scene(tuple(actors), colours[0], colours[1], colours[2], seconds)


def random_scene(domain: Domain, seconds: float, generator: np.random.Generator) -> Scene:
    """A scene of one to three objects, by MOTION_MIXES; some have a silent object besides."""

    def random_kind(motion_type: str) -> Kind:
        """A kind of object of the domain with this motion."""
        kinds = domain.kinds_with_motion(motion_type)
        return kinds[int(generator.integers(len(kinds)))]

    probabilities = [probability for _, probability in MOTION_MIXES]
    motion_types, _ = MOTION_MIXES[int(generator.choice(len(MOTION_MIXES), p=probabilities))]
    events_per_second = float(generator.choice((0.3, 0.7, 1.2))) / len(motion_types) ** 0.5
    actors = [random_actor(random_kind(each), events_per_second, seconds, generator) for each in motion_types]
    if generator.random() < 0.15:
        actors.append(random_drifting_actor(random_kind("strike"), generator))
    return build_scene(domain, actors, seconds, generator)
