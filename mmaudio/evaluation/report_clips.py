"""Clips that a report plays: the ones that changed most for the better and for the worse, and others of every video."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mmaudio.evaluation.results import ClipResult
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.metrics.registry import LOWER, METRICS, PRIMARY

NUM_EXTREMES = 3
"""Clips that are shown as the most improved, and as the most worsened."""
MIN_DISTANCE = 1e-6
"""Distance below which a relative change has no meaning."""


def relative_improvement(result: ClipResult) -> float:
    """By how much of the base's value the adapter is better by `PRIMARY`; NaN without a value."""
    base, adapted = (result.value(model, PRIMARY) for model in (BASE, ADAPTED))
    sign = -1 if METRICS[PRIMARY].better == LOWER else 1
    return sign * (adapted - base) / base if base > MIN_DISTANCE else math.nan


def choose_report_clips(results: Sequence[ClipResult], limit: int) -> list[int]:
    """Indices of at most `limit` clips: half of them at most extremes, the others evenly over the videos."""
    values = [relative_improvement(result) for result in results]
    ranked = sorted((index for index, value in enumerate(values) if math.isfinite(value)), key=lambda i: values[i])
    num_extremes = min(NUM_EXTREMES, limit // 4)
    chosen = {*ranked[:num_extremes], *ranked[len(ranked) - num_extremes :]}
    videos = [result.clip.video for result in results]
    counts = Counter(videos[index] for index in chosen)
    while len(chosen) < min(limit, len(results)):
        index = min((i for i in range(len(results)) if i not in chosen), key=lambda i: counts[videos[i]])
        chosen.add(index)
        counts[videos[index]] += 1
    return sorted(chosen)
