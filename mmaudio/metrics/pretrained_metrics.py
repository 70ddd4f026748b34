"""Metrics that need a model which listens: what such a judge is given, what it says, and which judges are at hand.

    judges = find_judges(search, names)    # nothing is loaded yet; `missing` says which metrics have none, and why
    opinions = [judge.hear(played) for judge in judges.load(names).judges]

Only small rows of numbers are kept of a sound, so that memory does not grow with the length of sounds.

D width of what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmaudio.errors import MMAudioError
from mmaudio.metrics.registry import METRICS

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Played:
    """One clip as a judge gets it."""

    waveforms: Mapping[str, Tensor]
    """(takes, samples) by the names of the sounds: original, codec, base, adapted."""
    rate: int
    """Samples per second."""
    seen: Tensor
    """Synchformer's features of the picture (tokens, width), as the network reads them."""
    caption: str = ""


@dataclass(frozen=True)
class Opinion:
    """What a judge says of one clip."""

    values: Mapping[str, Mapping[str, float]]
    """By sound, then by metric; means over takes, NaN where there is none."""
    rows: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    """By sound, then by what it is: (takes, D), kept for metrics of the whole set."""


class Judge(Protocol):
    """A model that listens to the sounds of one clip after the other."""

    def hear(self, played: Played) -> Opinion:
        """What it says of one clip."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A judge whose files are there."""

    metrics: tuple[str, ...]
    """Names in METRICS that it gives."""
    identity: str
    """Changes whenever its files do."""
    load: Callable[[], Judge]


@dataclass(frozen=True)
class Judges:
    """The judges that are at hand, and why others are not."""

    candidates: Sequence[Candidate] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why a metric has no judge, by its name."""

    @property
    def identity(self) -> dict[str, str]:
        """What results depend on, by metric; one that has no judge is not in it."""
        return {name: candidate.identity for candidate in self.candidates for name in candidate.metrics}

    def load(self, names: Sequence[str] = tuple(METRICS)) -> Wanted:
        """All of them with their weights, to compute the metrics called `names`; what cannot be read is missing."""
        loaded, missing = [], dict(self.missing)
        for candidate in self.candidates:
            try:
                loaded.append(candidate.load())
            except MMAudioError as error:
                missing |= dict.fromkeys(candidate.metrics, str(error))
        return Wanted(tuple(names), loaded, missing)


@dataclass(frozen=True)
class Wanted:
    """What is to be computed, and by whom."""

    names: Sequence[str] = tuple(METRICS)
    """Of metrics."""
    judges: Sequence[Judge] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean over the takes of each metric of a sound; NaN where a take has none."""
    return {name: float(np.mean(np.asarray(column, np.float64))) for name, column in values.items()}
