"""At which strength should the adapter be used: what it does at several, and the one to take.

A strength scales the adapter's effect: 0 is the base, 1 the adapter as trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmaudio.errors import ConfigError
from mmaudio.evaluation.results import ClipResult, Results
from mmaudio.lora.adapter import MAX_STRENGTH
from mmaudio.metrics.registry import ADAPTED, BASE, METRICS, PRIMARY
from mmaudio.metrics.statistics import BETTER, Comparison, compare, video_means

TRAINED = 1.0
"""The adapter as trained."""
USUAL = (0.5, 0.75, 1.25)
"""Tried unless others are asked for, beside 0 and 1."""
MOST_CLIPS = 8
"""Held-out clips that they are tried on, evenly over the videos."""


def chosen_strengths(values: Sequence[float]) -> tuple[float, ...]:
    """`values` in ascending order without the base and the adapter as trained, which are compared anyway.

    ConfigError for a value that is no strength.
    """
    for value in values:
        if not 0 <= value <= MAX_STRENGTH:
            raise ConfigError(f"strength {value:g}: from 0 (the base) over 1 (as trained) to {MAX_STRENGTH:g}")
    return tuple(sorted(set(values) - {0.0, TRAINED}))


def compare_strengths(results: Results) -> None:
    """Fill in the results' strengths and the recommended one, from the clips that were heard at several."""
    tried = [clip for clip in results.clips if clip.strengths]
    if not tried:
        return
    found = {0.0: _compared(tried, [clip.sounds[BASE].values for clip in tried])}
    for strength in sorted({strength for clip in tried for strength in clip.strengths}):
        found[strength] = _compared(tried, [clip.strengths[strength].values for clip in tried])
    found[TRAINED] = _compared(tried, [clip.sounds[ADAPTED].values for clip in tried])
    results.strengths = dict(sorted(found.items()))
    results.recommended, results.recommendation = recommend(results.strengths, _primary(tried))


def recommend(
    strengths: dict[float, dict[str, Comparison]], values: dict[float, list[float]]
) -> tuple[float | None, str]:
    """The strength to use, and why in a sentence; None where none can be told from the base.

    Of the strengths that are better than the base by `PRIMARY`, the smallest whose mean is within one standard error of
    the best one's: less of an adapter forgets less. `values` are the videos' means of that metric by strength. The rule
    of one standard error: Breiman et al., Classification and Regression Trees, 1984.
    """
    better = [s for s, found in strengths.items() if s and PRIMARY in found and found[PRIMARY].verdict == BETTER]
    if not better:
        return None, "At no strength is the distance to the originals clearly smaller than the base's on these clips."
    sign = -1 if METRICS[PRIMARY].better == "lower" else 1
    best = max(better, key=lambda s: sign * strengths[s][PRIMARY].adapted)
    for strength in sorted(better):
        lost = sign * (np.array(values[best]) - np.array(values[strength]))
        if strength == best or lost.mean() <= lost.std(ddof=1) / math.sqrt(len(lost)):
            break
    among = "Of the strengths that are clearly closer to the originals than the base"
    if strength == best:
        return best, f"{among}, this one is closest" + (
            "; less of it loses more than chance." if best > min(better) else "."
        )
    return strength, f"{among}, {best:g} is closest, and {strength:g} about as close: less of an adapter forgets less."


def _compared(clips: Sequence[ClipResult], values: Sequence[dict[str, float]]) -> dict[str, Comparison]:
    """The base against these values of the same clips, by metric."""
    videos, found = [clip.clip.video for clip in clips], {}
    for name, metric in METRICS.items():
        base = [clip.sounds[BASE].values.get(name, math.nan) for clip in clips]
        result = compare(base, [own.get(name, math.nan) for own in values], videos, metric.better)
        if result is not None:
            found[name] = result
    return found


def _primary(clips: Sequence[ClipResult]) -> dict[float, list[float]]:
    """The videos' means of `PRIMARY` by strength, over the clips that have a value at all."""
    rows: dict[float, list[float]] = {}
    for clip in clips:
        sounds = {0.0: clip.sounds[BASE], **clip.strengths, TRAINED: clip.sounds[ADAPTED]}
        for strength, sound in sounds.items():
            rows.setdefault(strength, []).append(sound.values.get(PRIMARY, math.nan))
    whole = np.isfinite(np.array(list(rows.values()))).all(0)
    videos = [clip.clip.video for clip, kept in zip(clips, whole, strict=True) if kept]
    means = {strength: video_means(np.array(values)[whole].tolist(), videos) for strength, values in rows.items()}
    return {strength: list(own.values()) for strength, own in means.items()}
