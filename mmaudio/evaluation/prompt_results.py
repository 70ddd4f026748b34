"""Results on generic prompts: how far the adapted sounds moved, in numbers and in a sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mmaudio.metrics.movement import Movement
from mmaudio.metrics.statistics import Comparison

PERCENT, LU = "\u202f%", "\u202fLU"
"""Units behind a narrow space that does not break."""


@dataclass(frozen=True)
class PromptResults:
    """How far the sounds of generic prompts moved."""

    mel: Movement
    """Mel distance in powers of ten, over all cells."""
    loudness: Movement | None
    """In LU."""
    clap: Comparison | None = None
    """CLAP's similarity to the prompt, base against adapted; None without its weights."""
    clap_movement: Movement | None = None
    """How far that similarity moved, up or down."""

    @property
    def sentence(self) -> str:
        """The results in a sentence."""
        return f"From text alone, {_describe_share(self.mel)}{self._describe_loudness()}{self._describe_clap()}."

    def _describe_loudness(self) -> str:
        if self.loudness is None:
            return ""
        return (
            f"; their loudness moved by {self.loudness.distance:.1f}{LU}, with another seed by "
            f"{self.loudness.seed_distance:.1f}{LU}"
        )

    def _describe_clap(self) -> str:
        clap = self.clap
        if clap is None:
            return ""
        ends = " to ".join(f"{end:+.3f}" for end in clap.interval or ())
        interval = f", 95{PERCENT} interval {ends}" if ends else ""
        change = f"from {clap.base:.3f} to {clap.adapted:.3f} ({clap.difference:+.3f}{interval})"
        return f"; similarity to the prompt (CLAP) went {change}"

    def to_json(self) -> dict[str, Any]:
        """The results by their keys in `metrics.json`."""
        return {"prompts": self.mel.prompts, "sentence": self.sentence, **asdict(self)}


def _describe_share(mel: Movement) -> str:
    sounds = f"the sounds of {mel.prompts} generic prompts moved"
    if mel.share is None:
        return f"{sounds} by {mel.distance:.2f} (mel distance), and another seed changes nothing"
    low, high = (f"{100 * end:.0f}" for end in mel.interval or (0, 0))
    interval = f" (95{PERCENT} interval {low} to {high}{PERCENT})" if mel.interval else ""
    return f"{sounds} {100 * mel.share:.0f}{PERCENT} as far as another seed moves the base's own{interval}"
