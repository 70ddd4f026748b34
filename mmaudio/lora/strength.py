"""Strength of an adapter: one number, or one for each part of the network.

    parse_strength("0.7"), parse_strength("joint=1,fused=0.5"), parse_strength("0.8,fused=0.5")

A strength scales the adapter's effect: 0 is the base model, 1 the adapter as trained.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mmaudio.errors import ConfigError
from mmaudio.model.blocks import block_name

MAX_STRENGTH = 1.5
"""Largest strength of an adapter; 1 is as trained."""
PARTS = ("joint", "fused", "rest")
"""Parts of the network: the joint blocks, the fused blocks, and everything outside of both."""


@dataclass(frozen=True)
class Strength:
    """Strengths by part of the network; ConfigError for one below 0 or above MAX_STRENGTH."""

    joint: float = 1
    fused: float = 1
    rest: float = 1

    def __post_init__(self) -> None:
        """Check the range."""
        for value in asdict(self).values():
            if not 0 <= value <= MAX_STRENGTH:
                raise ConfigError(f"strength={value:g}: from 0, the base model, to {MAX_STRENGTH}; 1 is as trained")

    def at(self, name: str) -> float:
        """The strength at a layer or parameter, by its dotted name."""
        block = block_name(name).partition("_")[0]
        return self.joint if block == "joint" else self.fused if block == "fused" else self.rest

    @property
    def is_zero(self) -> bool:
        """Whether nothing of the adapter acts."""
        return not any(asdict(self).values())

    def plain(self) -> float | str:
        """The number, or the text of the strengths by part, as `parse_strength` reads it."""
        values = asdict(self)
        if len(set(values.values())) == 1:
            return int(self.joint) if self.joint == int(self.joint) else self.joint
        return ",".join(f"{name}={value:g}" for name, value in values.items())


AS_TRAINED = Strength()
"""The adapter as trained."""


def uniform_strength(value: float) -> Strength:
    """The same strength everywhere."""
    return Strength(value, value, value)


def parse_strength(value: float | str | Strength) -> Strength:
    """Read a number, or a text such as `0.7` or `joint=1,fused=0.5`; parts that it does not name are as trained.

    A number in the text stands for the parts that it does not name. Raises ConfigError for anything else.
    """
    if isinstance(value, Strength):
        return value
    items = [item.strip().rpartition("=") for item in str(value).split(",")]
    names = [name.strip() for name, _, _ in items]
    try:
        by_name = {name: float(number) for name, (_, _, number) in zip(names, items, strict=True)}
    except ValueError:
        by_name = {}
    if len(by_name) < len(items) or not by_name.keys() <= {"", *PARTS}:
        raise ConfigError(
            f"strength={value}: a number, or numbers by part of the network ({', '.join(PARTS)}), such as 0.7 or "
            "joint=1,fused=0.5"
        )
    default = by_name.get("", 1.0)
    return Strength(*(by_name.get(name, default) for name in PARTS))
