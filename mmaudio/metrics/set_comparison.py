"""Comparison of base and adapted model by the metrics of whole sets of sounds: KAD, Frechet distance, inception score.

A set has one value, so its interval cannot be Student's over the videos' means. It is the jackknife's: the value is
computed again without each video in turn (without each of at most `MAX_GROUPS` groups of videos), and the spread of
those values gives the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmaudio.metrics.distribution import Array
from mmaudio.metrics.metric_inputs import ADAPTED, BASE, CODEC, ORIGINAL
from mmaudio.metrics.registry import METRICS, Metric
from mmaudio.metrics.set_statistics import SOUNDS, ModelOutputs, SetMetric, SetStatistic
from mmaudio.metrics.statistics import CONFIDENCE_LEVEL, Comparison, verdict

MAX_GROUPS = 20
"""Groups of videos that the jackknife leaves out."""


def compare_sets(
    outputs: ModelOutputs, videos: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, Comparison], dict[str, str]]:
    """The set metrics among `names`, and why others have no value; `videos` names each clip's source."""
    comparisons: dict[str, Comparison] = {}
    reasons: dict[str, str] = {}
    for name, metric in METRICS.items():
        set_metric = metric.set_metric
        if set_metric is None:
            continue
        width = outputs.width(set_metric.kind)
        reason = set_metric.too_few(len(videos), width)
        if reason:
            reasons[name] = reason
        elif name in names and width:
            comparison = _compare(metric, set_metric, outputs, videos)
            if comparison is None:
                reasons[name] = "needs two clips or more whose originals differ"
            else:
                comparisons[name] = comparison
    return comparisons, reasons


def _compare(metric: Metric, set_metric: SetMetric, outputs: ModelOutputs, videos: Sequence[str]) -> Comparison | None:
    """Base against adapted by one set metric; None where one of them has no value."""
    weights = _clip_weights(videos)
    reference = outputs.get(ORIGINAL, set_metric.kind, weights)
    sounds = SOUNDS if metric.reference_free else (CODEC, BASE, ADAPTED)
    rows = {sound: outputs.get(sound, set_metric.kind, weights) for sound in sounds}
    statistics = {sound: set_metric.statistic(rows[sound], reference) for sound in sounds}
    all_clips = np.ones(len(videos), np.bool_)
    values = {sound: statistic(all_clips) for sound, statistic in statistics.items()}
    if not all(math.isfinite(values[model]) for model in (BASE, ADAPTED)):
        return None
    num_videos = len(set(videos))
    interval, deviation = None, set_metric.deviation
    if set_metric.has_interval:
        interval = jackknife(lambda mask: statistics[ADAPTED](mask) - statistics[BASE](mask), videos)
    return Comparison(
        base=values[BASE],
        adapted=values[ADAPTED],
        difference=values[ADAPTED] - values[BASE],
        interval=interval,
        better=metric.better,
        verdict=verdict(interval, num_videos, metric.better),
        clips=len(videos),
        videos=num_videos,
        share_better=None,
        original=values.get(ORIGINAL),
        codec=values[CODEC] if math.isfinite(values[CODEC]) else None,
        deviations=None if deviation is None else (deviation(rows[BASE]), deviation(rows[ADAPTED])),
    )


def _clip_weights(videos: Sequence[str]) -> Array:
    """Weights of the clips by which every video counts the same, as in the metrics of clips."""
    _, indices, counts = np.unique(np.array(videos), return_inverse=True, return_counts=True)
    return 1.0 / counts[indices]


def jackknife(
    statistic: SetStatistic, videos: Sequence[str], level: float = CONFIDENCE_LEVEL
) -> tuple[float, float] | None:
    """Confidence interval of a statistic of all clips, from leaving out the clips of one group of videos at a time.

    None below three groups (two left in are the fewest that can be compared), or where a part has no value. Student's t
    with as many degrees of freedom as there are groups less one, on the jackknife's standard error around the estimate
    itself, which holds up where one video has most of the clips. Source: CV3 of MacKinnon, Nielsen and Webb, Fast and
    reliable jackknife and bootstrap methods for cluster-robust inference, Journal of Applied Econometrics 38, 2023.
    """
    names = list(dict.fromkeys(videos))
    num_groups = min(len(names), MAX_GROUPS)
    if num_groups < 3:
        return None
    group_of_video = {video: index % num_groups for index, video in enumerate(names)}
    groups = np.array([group_of_video[video] for video in videos])
    estimate = statistic(np.ones(len(videos), np.bool_))
    from scipy import stats  # slow to import

    shifts = np.array([statistic(groups != index) for index in range(num_groups)]) - estimate
    error = math.sqrt((num_groups - 1) / num_groups * float((shifts**2).sum()))
    half_width = float(stats.t.ppf((1 + level) / 2, num_groups - 1)) * error
    return (estimate - half_width, estimate + half_width) if math.isfinite(half_width) else None
