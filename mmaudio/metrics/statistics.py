"""Paired comparison of base and adapted model, with confidence intervals over source videos.

Clips of one video are not independent, so the video is the unit: differences (adapted - base) are averaged within each
video, and the interval is Student's t over the videos' means. A bootstrap over three to ten videos would be too narrow.

With folds (`data.folds`) every video has the difference of an adapter that was not trained on it. These adapters share
most of their training videos, so what chance did to all of them alike is not in the spread over the videos:
`fold_variance_factor` widens the interval for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmaudio.data.clips import MIN_VERDICT_VIDEOS
from mmaudio.metrics.registry import LOWER, METRICS, PRIMARY

CONFIDENCE_LEVEL = 0.95
"""Coverage of the interval."""
MIN_VIDEOS = MIN_VERDICT_VIDEOS
"""Below this many held-out videos no verdict is given."""
BETTER, WORSE, UNSURE, MIXED = "better", "worse", "cannot tell", "mixed"


@dataclass(frozen=True)
class Comparison:
    """One metric, base against adapted; means are over videos, each the mean of its clips."""

    base: float
    adapted: float
    difference: float
    """adapted - base"""
    interval: tuple[float, float] | None
    """95 % interval of the difference; None with a single video."""
    better: str
    """`lower` or `higher`: which way is better."""
    verdict: str
    """`better`, `worse` or `cannot tell`."""
    clips: int
    """Clips that have a value; the others have none (no loud cell) and are left out of this metric alone."""
    videos: int
    share_better: float | None
    """Share of the clips whose value is better with the adapter, 0 to 1; None for a value of the whole set."""
    original: float | None = None
    """The original sound's own value: the ceiling; a distance to itself is 0."""
    codec: float | None = None
    """The original's value after the codec's round trip: the best that any model of this codec can reach."""
    deviations: tuple[float, float] | None = None
    """Of base and adapted, where a deviation is published beside the value: the inception score's over its splits."""


def compare(
    base: Sequence[float],
    adapted: Sequence[float],
    videos: Sequence[str],
    better: str,
    variance_factor: float = 1.0,
) -> Comparison | None:
    """Compare per-clip values of both models; `videos` names each clip's source, `better` is `lower` or `higher`.

    Clips where either value is not finite are left out; None where no clip is left. `variance_factor`: `t_interval`'s.
    """
    pairs = [
        (video, a, b)
        for video, a, b in zip(videos, base, adapted, strict=True)
        if math.isfinite(a) and math.isfinite(b)
    ]
    if not pairs:
        return None
    means = np.array(
        [
            np.mean([(a, b) for video, a, b in pairs if video == name], axis=0)
            for name in dict.fromkeys(video for video, _, _ in pairs)
        ]
    )
    difference = means[:, 1] - means[:, 0]
    interval = t_interval(difference, variance_factor=variance_factor)
    sign = -1 if better == LOWER else 1
    return Comparison(
        base=float(means[:, 0].mean()),
        adapted=float(means[:, 1].mean()),
        difference=float(difference.mean()),
        interval=interval,
        better=better,
        verdict=verdict(interval, len(means), better),
        clips=len(pairs),
        videos=len(means),
        share_better=float(np.mean([sign * (b - a) > 0 for _, a, b in pairs])),
    )


def video_means(values: Sequence[float], videos: Sequence[str]) -> dict[str, float]:
    """The mean of each video's clips, those with a finite value; a video where none has is not in it."""
    by_video: dict[str, list[float]] = {}
    for video, value in zip(videos, values, strict=True):
        if math.isfinite(value):
            by_video.setdefault(video, []).append(value)
    return {video: float(np.mean(clip_values)) for video, clip_values in by_video.items()}


def mean_by_video(values: Sequence[float], videos: Sequence[str]) -> float | None:
    """The mean over videos, each the mean of its clips that have a finite value; None where none has."""
    means = video_means(values, videos)
    return float(np.mean(list(means.values()))) if means else None


def fold_variance_factor(num_folds: int) -> float:
    """Factor on the variance of a mean over the videos of all folds; 1 without folds.

    To 1/K, the variance's share by the test of K folds, is added the ratio of test to training videos, 1/(K - 1).
    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 52, 2003.
    """
    return 1 + num_folds / (num_folds - 1) if num_folds > 1 else 1.0


def t_interval(
    values: Sequence[float] | np.ndarray, level: float = CONFIDENCE_LEVEL, variance_factor: float = 1.0
) -> tuple[float, float] | None:
    """Student's t interval of the mean of `values`; None for fewer than two.

    They are independent, or `variance_factor` is the ratio of their mean's variance to that of independent ones.
    """
    sample = np.asarray(values, np.float64)
    if len(sample) < 2:
        return None
    from scipy import stats  # slow to import

    error = sample.std(ddof=1) * math.sqrt(variance_factor / len(sample))
    half_width = stats.t.ppf((1 + level) / 2, len(sample) - 1) * error
    return float(sample.mean() - half_width), float(sample.mean() + half_width)


def verdict(interval: tuple[float, float] | None, videos: int, better: str) -> str:
    """`better` or `worse` where the interval excludes zero and there are enough videos, else `cannot tell`."""
    if interval is None or videos < MIN_VIDEOS or interval[0] <= 0 <= interval[1]:
        return UNSURE
    return BETTER if (interval[1] < 0) == (better == LOWER) else WORSE


def overall_verdict(metrics: Mapping[str, Comparison]) -> str:
    """One verdict for all metrics: that of `PRIMARY`, `mixed` where another metric of the verdict has the opposite.

    A single metric decides, so that identical models are called different in 5 % of cases and not in 5 % per metric.
    Few are in the verdict (`Metric.in_verdict`), so that chance in one of many does not make a clear result mixed.
    """
    if PRIMARY not in metrics:
        return UNSURE
    primary = metrics[PRIMARY].verdict
    opposite = {BETTER: WORSE, WORSE: BETTER}.get(primary)
    return MIXED if opposite in {metrics[name].verdict for name in metrics if METRICS[name].in_verdict} else primary
