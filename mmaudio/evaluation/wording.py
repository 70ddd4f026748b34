"""The words of a report: the verdict by a fixed rule, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmaudio.evaluation.charts import interval_chart
from mmaudio.evaluation.metrics import METRICS
from mmaudio.evaluation.statistics import (
    BETTER,
    FEWEST_VIDEOS,
    MIXED,
    PRIMARY,
    UNSURE,
    WORSE,
    Comparison,
    overall,
)

STYLES = {BETTER: "good", WORSE: "bad", UNSURE: "unsure", MIXED: "unsure"}
SIGNS = {BETTER: "✓", WORSE: "✗", UNSURE: "≈", MIXED: "±"}
HEADLINES = {
    BETTER: "Better: the adapter brings held-out clips closer to their originals",
    WORSE: "Worse: the adapter takes held-out clips further from their originals",
    UNSURE: "Cannot tell: these held-out clips show no clear difference",
    MIXED: "Mixed: better in one respect, worse in another",
}
FEW = "Too few held-out videos for a verdict"
METHOD = (
    "Base and adapted model make a sound for the same clip from the same noise, and both are compared with the clip's "
    "original sound. Clips of one video are not independent, so the differences (adapted minus base) are averaged "
    "within each video, and the 95 % interval is Student's t over the videos. Better or worse is said where the "
    f"interval excludes zero and there are at least {FEWEST_VIDEOS} videos; otherwise nobody can tell with this many. "
    "The verdict at the top is that of the loud cells' mel distance, or mixed where another metric says the opposite."
)


def number(value: float) -> str:
    """Three significant digits, with a true minus sign."""
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """`number` that always has its sign."""
    return ("+" if value > 0 else "") + number(value)


def percent(part: float, whole: float) -> str:
    """A change relative to `whole`, signed; empty where `whole` is about zero."""
    if abs(whole) < 1e-6:
        return ""
    return f"{100 * part / abs(whole):+.0f}\u202f%".replace("-", "−")


TWICE = (
    "There were too few videos for two held-out parts: the clips compared here also chose the best step of training, "
    "so the adapter looks a little better here than it is."
)


def verdict(
    held_out: Mapping[str, Comparison], forgetting: Mapping[str, Comparison], why_none: str, twice: bool
) -> dict[str, Any]:
    """The report's first lines: style, sign, headline, sentences.

    `why_none`: why forgetting was not measured; `twice`: whether the held-out clips also served for validation.
    """
    word = overall(held_out)
    few = max((metric.videos for metric in held_out.values()), default=0) < FEWEST_VIDEOS
    sentences = [TWICE] if twice else []
    if few:
        sentences.append(
            f"With fewer than {FEWEST_VIDEOS} held-out videos chance cannot be told from change: the numbers below "
            "describe these clips and no others. Listen, and add videos for a verdict."
        )
    if PRIMARY in held_out:
        sentences.append("Where the original is audible, the distance to it went " + _change(held_out[PRIMARY]) + ".")
    if "onset_f1" in held_out:
        sentences.append("Agreement of onsets in time (F1, 1 is perfect) went " + _change(held_out["onset_f1"]) + ".")
    if PRIMARY in forgetting:
        change = _change(forgetting[PRIMARY])
        sentences.append(f"Forgetting: on other sounds, of the base's own domain, the same distance went {change}.")
    else:
        sentences.append(f"What the model forgot was not measured: {why_none}.")
    headline = FEW if few else HEADLINES[word]
    return {"style": STYLES[word], "sign": SIGNS[word], "headline": headline, "sentences": sentences}


def _change(metric: Comparison) -> str:
    text = f"from {number(metric.base)} to {number(metric.adapted)}"
    change = percent(metric.difference, metric.base)
    if metric.interval is None:
        return f"{text} ({change})" if change else text
    low, high = (percent(end, metric.base) or signed(end) for end in metric.interval)
    judged = "" if metric.videos < FEWEST_VIDEOS else f"; {metric.verdict}"
    return f"{text} ({change}, 95\u202f% interval {low} to {high}{judged})"


def rows(metrics: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    """The lines of a table of metrics."""
    made = []
    for name, metric in metrics.items():
        low, high = metric.interval or (metric.difference, metric.difference)
        style = STYLES[metric.verdict]
        limit = 1.1 * max(abs(low), abs(high), abs(metric.difference), 0.1 * abs(metric.base), 1e-9)
        made.append({
            "title": METRICS[name].title,
            "better": metric.better,
            "base": number(metric.base),
            "adapted": number(metric.adapted),
            "difference": signed(metric.difference),
            "percent": percent(metric.difference, metric.base),
            "interval": "one video: none" if metric.interval is None else f"{signed(low)} to {signed(high)}",
            "chart": interval_chart(low, metric.difference, high, limit, style),
            "verdict": metric.verdict if metric.videos >= FEWEST_VIDEOS else "too few videos",
            "style": style,
            "improved": f"{metric.share_better * metric.clips:.0f}",
            "clips": metric.clips,
        })  # fmt: skip
    return made


def clip_numbers(base: Mapping[str, float], adapted: Mapping[str, float]) -> list[dict[str, str]]:
    """One clip's metrics: which is better is shown where both have a value."""
    made = []
    for name, metric in METRICS.items():
        a, b = base[name], adapted[name]
        gain = (a - b) if metric.better == "lower" else (b - a)
        known = gain == gain and abs(gain) > 5e-4
        word = "" if not known else (BETTER if gain > 0 else WORSE)
        shown = [number(value) if value == value else "none" for value in (a, b)]
        made.append({
            "title": metric.title, "base": shown[0], "adapted": shown[1], "word": word, "style": STYLES.get(word, ""),
        })  # fmt: skip
    return made


def terminal(metrics: Mapping[str, Comparison]) -> list[str]:
    """A few lines that say the same in a terminal."""
    lines = [HEADLINES[overall(metrics)]]
    for name, metric in metrics.items():
        ends = [signed(end) for end in metric.interval or ()]
        interval = f", 95 % interval {' to '.join(ends)}" if ends else ""
        lines.append(
            f"  {METRICS[name].title}: {number(metric.base)} -> {number(metric.adapted)} "
            f"({signed(metric.difference)}{interval}): {metric.verdict}"
        )
    few = max((metric.videos for metric in metrics.values()), default=0) < FEWEST_VIDEOS
    return [*lines, f"  {FEW}: at least {FEWEST_VIDEOS} are needed"] if few else lines
