"""The kinds of object of the two domains: what they are called, how they look and how they sound.

A kind is a colour and a shape. In the base's domain the shape sets the character of the sound and the colour its pitch;
the demo's domain has other shapes, other colours and other sounds (bands of noise, a low hum): a base knows none.
"""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[float, float, float]
"""Red, green, blue in 0..1."""


@dataclass(frozen=True)
class Timbre:
    """The sound of one kind of object: decaying partials, a band of noise, or both."""

    frequency: float
    """Hertz: the first partial's, and the centre of the noise band."""
    decay: float
    """Seconds in which a struck sound falls to 1/e."""
    partials: tuple[tuple[float, float], ...] = ()
    """(frequency ratio, amplitude) of each partial."""
    noise: float = 0.0
    """Amplitude of the noise band."""
    octaves: float = 0.3
    """Width of the noise band."""
    sweep: float = 0.0
    """Octaves by which the pitch of the partials moves during one decay."""


@dataclass(frozen=True)
class Kind:
    """One kind of object: a colour and a shape, with the sound it makes."""

    colour_name: str
    shape: str
    colour: Colour
    timbre: Timbre
    motion: str
    """`strike`: it hops and hits; `switch`: it switches on and off; `spin`: it turns and hums."""

    @property
    def name(self) -> str:
        """The words of a caption, such as `red ball`."""
        return f"{self.colour_name} {self.shape}"


@dataclass(frozen=True)
class Domain:
    """The kinds of a world and the colours of its backgrounds."""

    name: str
    kinds: tuple[Kind, ...]
    backgrounds: tuple[Colour, ...]

    def of(self, motion: str) -> tuple[Kind, ...]:
        """The kinds that move in that way."""
        return tuple(kind for kind in self.kinds if kind.motion == motion)


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
    "box": ("strike", Timbre(1.0, 0.045, ((1.0, 0.7), (2.7, 0.4)), noise=0.5, octaves=1.2)),
    "triangle": ("strike", Timbre(2.0, 0.28, ((1.0, 0.7), (1.51, 0.5), (2.24, 0.35)))),
    "ring": ("strike", Timbre(1.0, 0.20, ((1.0, 0.5), (2.0, 0.4), (3.0, 0.35), (4.0, 0.3), (5.0, 0.2)))),
    "diamond": ("strike", Timbre(1.5, 0.10, ((1.0, 1.0),), sweep=-0.8)),
    "cross": ("strike", Timbre(1.8, 0.08, noise=1.0, octaves=0.8)),
    "pill": ("strike", Timbre(1.0, 0.09, ((1.0, 0.8), (1.5, 0.4)), noise=0.35, octaves=0.4, sweep=0.6)),
    "lamp": ("switch", Timbre(2.5, 0.03, ((1.0, 0.4),), noise=0.9, octaves=2.0)),
    "bar": ("spin", Timbre(0.5, 0.2, ((1.0, 0.8), (2.0, 0.5), (3.0, 0.3), (5.0, 0.2)))),
    "wheel": ("spin", Timbre(1.5, 0.2, noise=1.0, octaves=0.7)),
}
"""Shapes of the base's domain: how they move, and their sound with a frequency that multiplies the colour's pitch."""

DEMO_COLOURS: dict[str, tuple[Colour, float]] = {
    "pink": ((1.00, 0.66, 0.72), 0.0),
    "brown": ((0.50, 0.30, 0.12), 0.0),
    "teal": ((0.05, 0.48, 0.48), 0.0),
    "lime": ((0.70, 1.00, 0.30), 0.0),
}

DEMO_KINDS: tuple[tuple[str, str, str, Timbre], ...] = (
    ("pink", "star", "strike", Timbre(3400.0, 0.10, noise=1.0, octaves=0.4)),
    ("brown", "heart", "strike", Timbre(3100.0, 0.12, noise=1.0, octaves=0.5)),
    ("lime", "hexagon", "strike", Timbre(5600.0, 0.06, noise=1.0, octaves=0.35)),
    ("teal", "moon", "strike", Timbre(4300.0, 0.12, noise=1.0, octaves=0.3)),
    ("pink", "lantern", "switch", Timbre(6600.0, 0.06, noise=1.0, octaves=0.5)),
    ("lime", "fan", "spin", Timbre(95.0, 0.2, ((1.0, 0.8), (2.5, 0.6), (6.0, 0.5)))),
)
"""Kinds of the demo's domain: struck bands of noise, broad enough in mel for a small codec that never heard them and so
short that the noise's own swings are not taken for onsets. The fan hums low: in a high hum the codec loses strikes."""


def _base_kinds() -> tuple[Kind, ...]:
    """Every colour with every shape."""
    kinds = []
    for shape, (motion, sound) in BASE_SHAPES.items():
        for colour_name, (colour, pitch) in BASE_COLOURS.items():
            timbre = Timbre(
                sound.frequency * pitch, sound.decay, sound.partials, sound.noise, sound.octaves, sound.sweep
            )
            kinds.append(Kind(colour_name, shape, colour, timbre, motion))
    return tuple(kinds)


BASE = Domain(
    "base",
    _base_kinds(),
    backgrounds=(
        (0.05, 0.05, 0.08), (0.10, 0.10, 0.10), (0.16, 0.13, 0.10), (0.10, 0.16, 0.22), (0.22, 0.20, 0.24),
        (0.30, 0.30, 0.32), (0.14, 0.22, 0.16), (0.70, 0.70, 0.72), (0.80, 0.76, 0.68), (0.62, 0.70, 0.78),
    ),
)  # fmt: skip
"""What `tiny_16k` was trained on."""

DEMO = Domain(
    "demo",
    tuple(
        Kind(colour_name, shape, DEMO_COLOURS[colour_name][0], timbre, motion)
        for colour_name, shape, motion, timbre in DEMO_KINDS
    ),
    backgrounds=((0.12, 0.10, 0.18), (0.20, 0.16, 0.14), (0.10, 0.14, 0.20)),
)
"""The sample videos' domain: no shape, colour or sound of it is in the base's."""
