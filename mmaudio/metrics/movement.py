"""How far sounds move from one model to another, against how far another seed moves them; intervals over prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmaudio.metrics.statistics import CONFIDENCE_LEVEL


@dataclass(frozen=True)
class Movement:
    """Distances between sounds of the same prompts, means over the prompts."""

    distance: float
    """Between the two models' sounds from the same noise."""
    seed_distance: float
    """Between the first model's own sounds from two noises."""
    share: float | None
    """`distance` relative to `seed_distance`: 0 is no movement, 1 as far as another seed; None where that is 0."""
    interval: tuple[float, float] | None
    """95 % interval of the share, over prompts; None where these are too few or too different for one."""
    prompts: int
    """Prompts that have a value."""


def compare_distances(distances: Sequence[float], seed_distances: Sequence[float]) -> Movement | None:
    """Compare the distances of each prompt; None where no prompt has both.

    The share is the ratio of the means, not the mean of the ratios, which a prompt with near-equal seeds would decide.
    """
    pairs = np.array([distances, seed_distances], np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    count = pairs.shape[1]
    if not count:
        return None
    distance, seed_distance = (float(mean) for mean in pairs.mean(1))
    if not seed_distance:
        return Movement(distance, seed_distance, None, None, count)
    return Movement(distance, seed_distance, distance / seed_distance, ratio_interval(pairs), count)


def ratio_interval(pairs: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """Interval of the ratio of the means of two positive quantities (2, prompts); None where it has no upper end.

    Every ratio r for which Student's interval of the mean of `first - r * second` has zero in it. Source: Fieller, Some
    problems in interval estimation, Journal of the Royal Statistical Society B 16, 1954.
    """
    count = pairs.shape[1]
    if count < 2:
        return None
    from scipy import stats  # slow to import

    covariance, (first, second) = np.cov(pairs) / count, pairs.mean(1)
    squared_t = float(stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, count - 1)) ** 2
    a, b, c = (
        mean - squared_t * error
        for mean, error in (
            (second**2, covariance[1, 1]),
            (first * second, covariance[0, 1]),
            (first**2, covariance[0, 0]),
        )
    )
    if a <= 0:
        return None
    root = math.sqrt(max(0.0, b * b - a * c))
    return max(0.0, float((b - root) / a)), float((b + root) / a)
