"""Kinds of object of the domains: names, looks and timbres.

A kind is a colour and a shape. In the base's domain the shape sets the character of the sound and the colour its pitch;
the demo's domain has other shapes, other colours and other timbres (noise bands, a low hum), all new to the base. The
domain of chimes has the demo's shapes in further colours, with the partials of metal bars: what was chosen on the demo
is tried on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

Colour = tuple[float, float, float]
"""Red, green, blue in 0..1."""


@dataclass(frozen=True)
class Timbre:
    """Timbre of one kind of object: decaying partials, a noise band, or both."""

    frequency: float
    """Hertz: the first partial's, and the centre of the noise band."""
    decay: float
    """Seconds in which a strike falls to 1/e."""
    partials: tuple[tuple[float, float], ...] = ()
    """(frequency ratio, amplitude) of each partial."""
    noise: float = 0.0
    """Amplitude of the noise band."""
    noise_octaves: float = 0.3
    """Width of the noise band."""
    sweep_octaves: float = 0.0
    """Octaves by which the pitch of the partials moves during one decay."""


@dataclass(frozen=True)
class Kind:
    """One kind of object: a colour and a shape, with a timbre and a motion."""

    colour_name: str
    shape: str
    colour: Colour
    timbre: Timbre
    motion_type: str
    """`strike`: it hops and hits walls; `switch`: it switches on and off; `spin`: it turns and hums."""

    @property
    def name(self) -> str:
        """The name in captions, such as `red ball`."""
        return f"{self.colour_name} {self.shape}"


@dataclass(frozen=True)
class Domain:
    """The kinds and background colours that scenes are drawn from."""

    name: str
    kinds: tuple[Kind, ...]
    backgrounds: tuple[Colour, ...]

    def kinds_with_motion(self, motion_type: str) -> tuple[Kind, ...]:
        """The kinds of that motion type."""
        return tuple(kind for kind in self.kinds if kind.motion_type == motion_type)


BASE_COLOURS: dict[str, tuple[Colour, float]] = {
    "red": ((0.92, 0.12, 0.12), 440.0),
    "orange": ((1.00, 0.55, 0.05), 880.0),
    "yellow": ((0.97, 0.93, 0.15), 1600.0),
    "green": ((0.12, 0.78, 0.16), 277.0),
    "cyan": ((0.10, 0.88, 0.92), 1270.0),
    "blue": ((0.14, 0.25, 0.95), 349.0),
    "purple": ((0.55, 0.10, 0.80), 220.0),
    "magenta": ((0.98, 0.15, 0.80), 1050.0),
    "white": ((0.97, 0.97, 0.97), 698.0),
    "gray": ((0.52, 0.52, 0.54), 554.0),
}
"""Colours of the base's domain, each with its pitch in hertz."""

BASE_SHAPES: dict[str, tuple[str, Timbre]] = {
    "ball": ("strike", Timbre(1.0, 0.14, ((1.0, 1.0), (2.0, 0.25)))),
    "box": ("strike", Timbre(1.0, 0.045, ((1.0, 0.7), (2.7, 0.4)), noise=0.5, noise_octaves=1.2)),
    "triangle": ("strike", Timbre(2.0, 0.28, ((1.0, 0.7), (1.51, 0.5), (2.24, 0.35)))),
    "ring": ("strike", Timbre(1.0, 0.20, ((1.0, 0.5), (2.0, 0.4), (3.0, 0.35), (4.0, 0.3), (5.0, 0.2)))),
    "diamond": ("strike", Timbre(1.5, 0.10, ((1.0, 1.0),), sweep_octaves=-0.8)),
    "cross": ("strike", Timbre(1.8, 0.08, noise=1.0, noise_octaves=0.8)),
    "pill": ("strike", Timbre(1.0, 0.09, ((1.0, 0.8), (1.5, 0.4)), noise=0.35, noise_octaves=0.4, sweep_octaves=0.6)),
    "lamp": ("switch", Timbre(2.5, 0.03, ((1.0, 0.4),), noise=0.9, noise_octaves=2.0)),
    "bar": ("spin", Timbre(0.5, 0.2, ((1.0, 0.8), (2.0, 0.5), (3.0, 0.3), (5.0, 0.2)))),
    "wheel": ("spin", Timbre(1.5, 0.2, noise=1.0, noise_octaves=0.7)),
}
"""Shapes of the base's domain: motion type, and timbre with a frequency that multiplies the colour's pitch."""

DEMO_COLOURS: dict[str, Colour] = {
    "pink": (1.00, 0.66, 0.72),
    "brown": (0.50, 0.30, 0.12),
    "teal": (0.05, 0.48, 0.48),
    "lime": (0.70, 1.00, 0.30),
}

DEMO_KINDS: tuple[tuple[str, str, str, Timbre], ...] = (
    ("pink", "star", "strike", Timbre(3400.0, 0.10, noise=1.0, noise_octaves=0.4)),
    ("brown", "heart", "strike", Timbre(3100.0, 0.12, noise=1.0, noise_octaves=0.5)),
    ("lime", "hexagon", "strike", Timbre(5600.0, 0.06, noise=1.0, noise_octaves=0.35)),
    ("teal", "moon", "strike", Timbre(4300.0, 0.12, noise=1.0, noise_octaves=0.3)),
    ("pink", "lantern", "switch", Timbre(6600.0, 0.06, noise=1.0, noise_octaves=0.5)),
    ("lime", "fan", "spin", Timbre(95.0, 0.2, ((1.0, 0.8), (2.5, 0.6), (6.0, 0.5)))),
)
"""Kinds of the demo's domain: noise bands, broad enough in mel for a small codec that was not trained on them and so
short that fluctuations of the noise do not count as onsets. The fan hums low: in a high hum the codec loses strikes."""

CHIME_COLOURS: dict[str, Colour] = {
    "navy": (0.04, 0.08, 0.40),
    "olive": (0.48, 0.46, 0.05),
    "maroon": (0.42, 0.03, 0.16),
    "peach": (1.00, 0.82, 0.62),
}

BAR_PARTIALS = ((1.0, 0.7), (2.756, 0.45), (5.404, 0.25))
"""Of a free metal bar: the ratios of its first bending modes (Fletcher and Rossing, The Physics of Musical
Instruments)."""

CHIME_KINDS: tuple[tuple[str, str, str, Timbre], ...] = (
    ("peach", "star", "strike", Timbre(1180.0, 0.30, BAR_PARTIALS)),
    ("maroon", "heart", "strike", Timbre(415.0, 0.40, BAR_PARTIALS)),
    ("olive", "hexagon", "strike", Timbre(740.0, 0.25, BAR_PARTIALS, sweep_octaves=0.1)),
    ("navy", "moon", "strike", Timbre(250.0, 0.45, BAR_PARTIALS)),
    ("peach", "lantern", "switch", Timbre(1900.0, 0.08, BAR_PARTIALS)),
    ("olive", "fan", "spin", Timbre(150.0, 0.2, ((1.0, 0.6), (1.26, 0.5), (4.2, 0.4)))),
)
"""Kinds of the domain of chimes."""


def _base_kinds() -> tuple[Kind, ...]:
    """Every colour with every shape."""
    kinds = []
    for shape, (motion_type, shape_timbre) in BASE_SHAPES.items():
        for colour_name, (colour, pitch) in BASE_COLOURS.items():
            timbre = replace(shape_timbre, frequency=shape_timbre.frequency * pitch)
            kinds.append(Kind(colour_name, shape, colour, timbre, motion_type))
    return tuple(kinds)


def _kinds(rows: tuple[tuple[str, str, str, Timbre], ...], colours: dict[str, Colour]) -> tuple[Kind, ...]:
    """The kinds of rows of colour's name, shape, motion type and timbre."""
    return tuple(
        Kind(colour_name, shape, colours[colour_name], timbre, motion_type)
        for colour_name, shape, motion_type, timbre in rows
    )


BASE = Domain(
    "base",
    _base_kinds(),
    backgrounds=(
        (0.05, 0.05, 0.08),
        (0.10, 0.10, 0.10),
        (0.16, 0.13, 0.10),
        (0.10, 0.16, 0.22),
        (0.22, 0.20, 0.24),
        (0.30, 0.30, 0.32),
        (0.14, 0.22, 0.16),
        (0.70, 0.70, 0.72),
        (0.80, 0.76, 0.68),
        (0.62, 0.70, 0.78),
    ),
)
"""Domain that `tiny_16k` was trained on."""

DEMO = Domain(
    "demo",
    _kinds(DEMO_KINDS, DEMO_COLOURS),
    backgrounds=((0.12, 0.10, 0.18), (0.20, 0.16, 0.14), (0.10, 0.14, 0.20)),
)
"""Domain of the sample videos: no shape, colour or timbre of it is in the base's."""

CHIMES = Domain(
    "chimes",
    _kinds(CHIME_KINDS, CHIME_COLOURS),
    backgrounds=((0.26, 0.24, 0.20), (0.18, 0.22, 0.20), (0.86, 0.86, 0.82)),
)
"""A second domain of sample videos, used for no choice of a default."""

SAMPLE_DOMAINS = {domain.name: domain for domain in (DEMO, CHIMES)}
"""Domains of sample videos, by name; kind number i of each has the motion of kind i of the others."""
