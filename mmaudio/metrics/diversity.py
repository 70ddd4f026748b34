"""Differences between the samples of one clip, which are generated from different noise. Pure functions; no models."""

from __future__ import annotations

import math
from itertools import combinations

from torch import Tensor

DUPLICATE = 0.05
"""Mean difference of two mel spectrograms, in powers of ten, below which they are practically the same: 1 dB."""


def sample_distances(mels: Tensor, log_base: float) -> list[float]:
    """Mean absolute differences, in powers of ten, of all pairs of samples (S, M, T); empty for one sample."""
    mels = mels.double() * (math.log(log_base) / math.log(10))
    return [float((mels[a] - mels[b]).abs().mean()) for a, b in combinations(range(len(mels)), 2)]


def duplicates(distances: list[float]) -> float:
    """Share of pairs of samples that are closer than `DUPLICATE`, 0 to 1; NaN without a pair. Lower is better."""
    return sum(distance < DUPLICATE for distance in distances) / len(distances) if distances else math.nan


def diversity(distances: list[float]) -> float:
    """Mean distance of pairs of samples, in powers of ten of the mel value; NaN without a pair. Higher is more diverse.

    Source: the mean pairwise distance between samples, as LPIPS diversity is computed for images (arXiv 1711.11586).
    """
    return sum(distances) / len(distances) if distances else math.nan
