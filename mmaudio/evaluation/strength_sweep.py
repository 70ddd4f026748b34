"""Comparison of several strengths of the adapter, and the strength to use.

A strength scales the adapter's effect: 0 is the base, 1 the adapter as trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmaudio.errors import ConfigError
from mmaudio.evaluation.results import ClipResult, Results
from mmaudio.lora.adapter import MAX_STRENGTH
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.metrics.registry import LOWER, METRICS, PRIMARY
from mmaudio.metrics.statistics import BETTER, Comparison, compare, video_means

FULL = 1.0
"""The strength as trained."""
DEFAULT_STRENGTHS = (0.5, 0.75, 1.25)
"""Strengths that are tried by default, besides 0 and 1."""
MAX_CLIPS = 8
"""Held-out clips that they are tried on, evenly over the videos."""


def strengths_to_try(values: Sequence[float]) -> tuple[float, ...]:
    """`values` in ascending order without 0 and 1, which are compared anyway; ConfigError for an invalid strength."""
    for value in values:
        if not 0 <= value <= MAX_STRENGTH:
            raise ConfigError(f"strength {value:g}: from 0 (the base) over 1 (as trained) to {MAX_STRENGTH:g}")
    return tuple(sorted(set(values) - {0.0, FULL}))


def compare_strengths(results: Results) -> None:
    """Fill in the results' strengths and the recommended one, from the clips on which several were tried."""
    clips = [clip for clip in results.clips if clip.strengths]
    if not clips:
        return
    comparisons = {0.0: _compare_with_base(clips, [clip.measurements[BASE].values for clip in clips])}
    for strength in sorted({strength for clip in clips for strength in clip.strengths}):
        values = [clip.strengths[strength].values for clip in clips]
        comparisons[strength] = _compare_with_base(clips, values)
    comparisons[FULL] = _compare_with_base(clips, [clip.measurements[ADAPTED].values for clip in clips])
    results.strengths = dict(sorted(comparisons.items()))
    results.recommended, results.recommendation = recommend(results.strengths, _primary_video_means(clips))


def recommend(
    strengths: dict[float, dict[str, Comparison]], video_values: dict[float, list[float]]
) -> tuple[float | None, str]:
    """The strength to use and the reason in a sentence; None where none is clearly better than the base.

    Of the strengths that are better than the base by `PRIMARY`, the smallest whose mean is within one standard error of
    the best one's: less of an adapter forgets less. `video_values` are the videos' means of that metric by strength.
    The rule of one standard error: Breiman et al., Classification and Regression Trees, 1984.
    """
    better = [s for s, metrics in strengths.items() if s and PRIMARY in metrics and metrics[PRIMARY].verdict == BETTER]
    if not better:
        return None, "At no strength is the distance to the originals clearly smaller than the base's on these clips."
    sign = -1 if METRICS[PRIMARY].better == LOWER else 1
    best = max(better, key=lambda s: sign * strengths[s][PRIMARY].adapted)
    for strength in sorted(better):
        loss = sign * (np.array(video_values[best]) - np.array(video_values[strength]))
        if strength == best or loss.mean() <= loss.std(ddof=1) / math.sqrt(len(loss)):
            break
    candidates = "Of the strengths that are clearly closer to the originals than the base"
    if strength == best:
        ending = "; less of it loses more than chance." if best > min(better) else "."
        return best, f"{candidates}, this one is closest{ending}"
    return (
        strength,
        f"{candidates}, {best:g} is closest, and {strength:g} about as close: less of an adapter forgets less.",
    )


def _compare_with_base(clips: Sequence[ClipResult], values: Sequence[dict[str, float]]) -> dict[str, Comparison]:
    """The base against other values of the same clips, by metric."""
    videos, comparisons = [clip.clip.video for clip in clips], {}
    for name, metric in METRICS.items():
        base = [clip.value(BASE, name) for clip in clips]
        comparison = compare(base, [by_metric.get(name, math.nan) for by_metric in values], videos, metric.better)
        if comparison is not None:
            comparisons[name] = comparison
    return comparisons


def _primary_video_means(clips: Sequence[ClipResult]) -> dict[float, list[float]]:
    """The videos' means of `PRIMARY` by strength, over the clips that have a value at every strength."""
    values: dict[float, list[float]] = {}
    for clip in clips:
        at_strengths = {0.0: clip.measurements[BASE], **clip.strengths, FULL: clip.measurements[ADAPTED]}
        for strength, measurement in at_strengths.items():
            values.setdefault(strength, []).append(measurement.values.get(PRIMARY, math.nan))
    complete = np.isfinite(np.array(list(values.values()))).all(0)
    videos = [clip.clip.video for clip, is_complete in zip(clips, complete, strict=True) if is_complete]
    means = {strength: video_means(np.array(row)[complete].tolist(), videos) for strength, row in values.items()}
    return {strength: list(by_video.values()) for strength, by_video in means.items()}
