"""Statistics of whole sets of sounds, as functions of the clips that are left in: KAD, FD, inception score.

n rows (one per sample of each clip), D width of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mmaudio.metrics.distribution import (
    Array,
    PairwiseKernels,
    frechet_distance,
    inception_scores,
    inception_splits,
)
from mmaudio.metrics.metric_inputs import ADAPTED, BASE, CODEC, ORIGINAL

SOUNDS = (ORIGINAL, CODEC, BASE, ADAPTED)

Mask = npt.NDArray[np.bool_]
SetStatistic = Callable[[Mask], float]
"""A value from the clips that a mask leaves in."""


@dataclass(frozen=True)
class OutputRows:
    """Rows of a model's output for one sound of all clips."""

    values: Array
    """(n, D)"""
    clip_indices: npt.NDArray[np.intp]
    """The clip of each row (n,)."""
    clip_weights: Array | None = None
    """How much each clip counts, for the statistics that weigh them; None: all the same."""

    @property
    def weights(self) -> Array | None:
        """How much each row counts (n,); None: all the same."""
        return None if self.clip_weights is None else self.clip_weights[self.clip_indices]


@dataclass
class ModelOutputs:
    """Outputs of the pretrained models for every clip of a set."""

    rows: dict[str, dict[str, list[npt.NDArray[np.float32]]]] = field(default_factory=dict)
    """By sound, then by kind: an array (samples, D) per clip."""

    def add(self, clip_rows: Mapping[str, Mapping[str, npt.NDArray[np.float32]]]) -> None:
        """Append one clip's rows, those of the four sounds."""
        for sound in SOUNDS:
            for kind, values in clip_rows.get(sound, {}).items():
                self.rows.setdefault(sound, {}).setdefault(kind, []).append(values)

    def get(self, sound: str, kind: str, clip_weights: Array | None = None) -> OutputRows:
        """All rows of one kind of a sound; `clip_weights` (clips,) says how much each clip counts."""
        arrays = self.rows[sound][kind]
        clip_indices = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
        return OutputRows(np.concatenate(arrays).astype(np.float64), clip_indices, clip_weights)

    def width(self, kind: str) -> int:
        """The width D of the rows of one kind; 0 where there are none."""
        arrays = self.rows.get(BASE, {}).get(kind, [])
        return arrays[0].shape[1] if arrays else 0


@dataclass(frozen=True)
class SetMetric:
    """The part of a metric's registry entry that a metric of whole sets has."""

    kind: str
    """The kind of model output that it is computed from."""
    statistic: Callable[[OutputRows, OutputRows], SetStatistic]
    """From the rows of a sound and those of the originals."""
    has_interval: bool = True
    """False for a statistic whose bias grows as clips are left out: a jackknife would measure that."""
    too_few: Callable[[int, int], str] = lambda clips, width: ""
    """Why so many clips with rows of such a width have no value; empty where they have one."""
    deviation: Callable[[OutputRows], float] | None = None
    """The deviation that is published beside the value, from the rows of a sound."""


def kad_statistic(rows: OutputRows, reference: OutputRows) -> SetStatistic:
    """Kernel audio distance from the originals; each clip counts by its weight."""
    kernels = PairwiseKernels(rows.values, reference.values, rows.clip_indices, rows.weights, reference.weights)
    return lambda mask: kernels.kad(mask[rows.clip_indices], mask[reference.clip_indices])


def frechet_statistic(rows: OutputRows, reference: OutputRows) -> SetStatistic:
    """Frechet distance from the originals."""
    return lambda mask: frechet_distance(
        rows.values[mask[rows.clip_indices]], reference.values[mask[reference.clip_indices]]
    )


def inception_statistic(rows: OutputRows, reference: OutputRows) -> SetStatistic:
    """Mean inception score of the splits, which has no reference; a sound stays in its split whatever is left out."""
    del reference
    splits = inception_splits(len(rows.values))

    def statistic(mask: Mask) -> float:
        """Mean inception score of the clips that `mask` keeps."""
        selected = mask[rows.clip_indices]
        return float(inception_scores(rows.values[selected], splits[selected]).mean())

    return statistic


def inception_deviation(rows: OutputRows) -> float:
    """Standard deviation of the inception score over its splits."""
    return float(inception_scores(rows.values, inception_splits(len(rows.values))).std())
