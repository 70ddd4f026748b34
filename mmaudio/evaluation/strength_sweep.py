"""Comparison of several strengths of the adapter, and the strength to use.

A strength scales the adapter's effect: 0 is the base, 1 the adapter as trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mmaudio.errors import ConfigError
from mmaudio.evaluation.results import ClipMeasurement, ClipResult, Results
from mmaudio.lora.adapter import MAX_STRENGTH
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.metrics.registry import LOWER, METRICS, PRIMARY
from mmaudio.metrics.statistics import (
    BETTER,
    CONFIDENCE_LEVEL,
    MIN_VIDEOS,
    WORSE,
    Comparison,
    compare,
    fold_variance_factor,
    t_interval,
    verdict,
    video_means,
)

FULL = 1.0
"""The strength as trained."""
DEFAULT_STRENGTHS = (0.5, 0.75, 1.25)
"""Strengths that are tried by default, besides 0 and 1, where there are enough videos."""
MAX_CLIPS = 8
"""Clips of each set that they are tried on, evenly over the videos."""
STRENGTH_METRICS = (PRIMARY, "onset_f1")
"""Metrics in which the recommended strength is not clearly worse than the adapter as trained."""


def strengths_to_try(values: Sequence[float]) -> tuple[float, ...]:
    """`values` in ascending order without 0 and 1, which are compared anyway; ConfigError for an invalid strength."""
    for value in values:
        if not 0 <= value <= MAX_STRENGTH:
            raise ConfigError(f"strength {value:g}: from 0 (the base) over 1 (as trained) to {MAX_STRENGTH:g}")
    return tuple(sorted(set(values) - {0.0, FULL}))


def default_strengths(num_videos: int) -> tuple[float, ...]:
    """Strengths to try with `num_videos` held-out videos: none where no one can be told from another."""
    return DEFAULT_STRENGTHS if num_videos >= MIN_VIDEOS else ()


def compare_strengths(results: Results, general: Results | None = None) -> None:
    """Fill in the strengths of the results, and the recommended one, from the clips on which several were tried.

    `general` are the results on clips of the base's own domain: what each strength forgets.
    """
    clips = [clip for clip in results.clips if clip.strengths]
    if not clips:
        return
    factor = fold_variance_factor(results.num_folds)
    results.strengths = _compare_by_strength(clips, factor)
    if general is not None:
        general.strengths = _compare_by_strength([clip for clip in general.clips if clip.strengths])
    losses = {strength: _find_clear_losses(clips, strength, factor) for strength in results.strengths}
    choice = recommend(results.strengths, _primary_video_means(clips), losses, factor)
    forgetting = "" if general is None else describe_forgetting(general.strengths, choice[0])
    results.recommended, results.recommendation = choice[0], f"{choice[1]}{forgetting}"


def recommend(
    strengths: Mapping[float, Mapping[str, Comparison]],
    video_values: Mapping[float, Sequence[float]],
    losses: Mapping[float, Sequence[str]],
    variance_factor: float = 1.0,
) -> tuple[float | None, str]:
    """The strength to use and the reason in a sentence; None where none is clearly better than the base.

    Of the strengths that are better than the base by `PRIMARY`, and in none of STRENGTH_METRICS clearly worse than the
    adapter as trained (`losses` names those metrics), the smallest whose mean is within one standard error of the best
    one's: less of an adapter forgets less. `video_values` are the videos' means of that metric by strength, and
    `variance_factor` that of `t_interval`.
    The rule of one standard error: Breiman et al., Classification and Regression Trees, 1984.
    """
    better = _find_better(strengths, video_values, variance_factor)
    if not better:
        return None, "At no strength is the distance to the originals clearly smaller than the base's on these clips."
    admitted = [strength for strength in better if not losses[strength]]
    excluded = _describe_losses({s: losses[s] for s in better if losses[s]})
    if not admitted:
        return None, f"No strength can be recommended.{excluded}"
    sign = -1 if METRICS[PRIMARY].better == LOWER else 1
    best = max(admitted, key=lambda s: sign * strengths[s][PRIMARY].adapted)
    for strength in sorted(admitted):
        loss = sign * (np.array(video_values[best]) - np.array(video_values[strength]))
        if strength == best or loss.mean() <= loss.std(ddof=1) / math.sqrt(len(loss)):
            break
    candidates = "Of the strengths that are clearly closer to the originals than the base"
    if strength == best:
        ending = "; less of it loses more than chance." if best > min(better) else "."
        return best, f"{candidates}, this one is closest{ending}{excluded}"
    reason = f"{candidates}, {best:g} is closest, and {strength:g} about as close: less of an adapter forgets less."
    return strength, f"{reason}{excluded}"


def _find_better(
    strengths: Mapping[float, Mapping[str, Comparison]],
    video_values: Mapping[float, Sequence[float]],
    variance_factor: float,
) -> list[float]:
    """The strengths that are clearly better than the base by `PRIMARY`.

    The adapter as trained is tested first. Where it is not better, the other strengths share the chance of an error
    (Bonferroni): one of several is better by chance more often than one.
    """
    better = [s for s, metrics in strengths.items() if s and PRIMARY in metrics and metrics[PRIMARY].verdict == BETTER]
    if FULL in better:
        return better
    level = 1 - (1 - CONFIDENCE_LEVEL) / max(1, len(set(strengths) - {0.0, FULL}))
    differences = {strength: np.subtract(video_values[strength], video_values[0.0]) for strength in better}
    return [
        strength
        for strength, values in differences.items()
        if verdict(t_interval(values, level, variance_factor), len(values), METRICS[PRIMARY].better) == BETTER
    ]


def describe_forgetting(strengths: Mapping[float, Mapping[str, Comparison]], recommended: float | None) -> str:
    """How far audio of the base's own domain moves from its originals, in a sentence; empty without a value."""
    shown = [FULL] if recommended in (None, FULL) else [recommended, FULL]
    changes = []
    for strength in shown:
        comparison = strengths.get(strength, {}).get(PRIMARY)
        if comparison is None or comparison.base == 0:
            return ""
        changes.append(f"{round(100 * comparison.difference / comparison.base):+d} % at {strength:g}")
    return f" Distance on other audio, against the base's: {', '.join(changes)}."


def _describe_losses(losses: Mapping[float, Sequence[str]]) -> str:
    """The strengths that are clearly worse than the adapter as trained, and in what, as a sentence."""
    titles = {name: METRICS[name].title[0].lower() + METRICS[name].title[1:] for name in STRENGTH_METRICS}
    reasons = [f"{s:g} ({' and '.join(titles[name] for name in names)})" for s, names in losses.items()]
    return f" Clearly worse than the adapter as trained: {', '.join(reasons)}." if reasons else ""


def _find_clear_losses(clips: Sequence[ClipResult], strength: float, factor: float) -> list[str]:
    """The metrics of STRENGTH_METRICS in which a strength is clearly worse than the adapter as trained."""
    videos, names = [clip.clip.video for clip in clips], []
    for name in STRENGTH_METRICS:
        as_trained, values = _values(clips, FULL, name), _values(clips, strength, name)
        comparison = compare(as_trained, values, videos, METRICS[name].better, factor)
        if comparison is not None and comparison.verdict == WORSE:
            names.append(name)
    return names


def _compare_by_strength(clips: Sequence[ClipResult], factor: float = 1.0) -> dict[float, dict[str, Comparison]]:
    """The base against each strength that was tried on the clips, by metric; `factor` is that of `t_interval`."""
    videos = [clip.clip.video for clip in clips]
    strengths = {0.0, FULL} | {strength for clip in clips for strength in clip.strengths}
    comparisons: dict[float, dict[str, Comparison]] = {}
    for strength in sorted(strengths):
        by_metric = {
            name: compare(_values(clips, 0.0, name), _values(clips, strength, name), videos, metric.better, factor)
            for name, metric in METRICS.items()
        }
        comparisons[strength] = {name: value for name, value in by_metric.items() if value is not None}
    return comparisons


def _values(clips: Sequence[ClipResult], strength: float, name: str) -> list[float]:
    """One metric of the adapter at a strength by clip, NaN where there is no value."""
    return [_at_strengths(clip)[strength].values.get(name, math.nan) for clip in clips]


def _at_strengths(clip: ClipResult) -> dict[float, ClipMeasurement]:
    """All measurements of a model's sound of a clip by strength."""
    return {0.0: clip.measurements[BASE], **clip.strengths, FULL: clip.measurements[ADAPTED]}


def _primary_video_means(clips: Sequence[ClipResult]) -> dict[float, list[float]]:
    """The videos' means of `PRIMARY` by strength, over the clips that have a value at every strength."""
    values: dict[float, list[float]] = {}
    for clip in clips:
        for strength, measurement in _at_strengths(clip).items():
            values.setdefault(strength, []).append(measurement.values.get(PRIMARY, math.nan))
    complete = np.isfinite(np.array(list(values.values()))).all(0)
    videos = [clip.clip.video for clip, is_complete in zip(clips, complete, strict=True) if is_complete]
    means = {strength: video_means(np.array(row)[complete].tolist(), videos) for strength, row in values.items()}
    return {strength: list(by_video.values()) for strength, by_video in means.items()}
