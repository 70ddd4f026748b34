"""Rows of the report's tables of metrics: texts, interval charts, and the values that columns are sorted by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmaudio.metrics.registry import LOWER, METRICS
from mmaudio.metrics.statistics import BETTER, MIN_VIDEOS, MIXED, UNSURE, WORSE, Comparison
from mmaudio.report.charts import interval_chart
from mmaudio.report.number_format import format_number, format_percent, format_signed, format_sortable

STYLES = {BETTER: "good", WORSE: "bad", UNSURE: "unsure", MIXED: "unsure"}
"""Classes of the style sheet by verdict."""


def metric_rows(comparisons: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    """The rows of a table of metrics."""
    return [_metric_row(name, comparison) for name, comparison in comparisons.items()]


def improvement(metric: str, change: float) -> float:
    """A change of a metric, positive where it is for the better."""
    return -change if METRICS[metric].better == LOWER else change


def verdict_style(comparison: Comparison) -> str:
    """The class of a comparison's verdict, `unsure` where there are too few videos."""
    return STYLES[UNSURE if comparison.videos < MIN_VIDEOS else comparison.verdict]


def num_improved(comparison: Comparison) -> str:
    """The number of clips that are better; empty for a value of the whole set."""
    return "" if comparison.share_better is None else f"{comparison.share_better * comparison.clips:.0f}"


def improvement_chart(name: str, comparison: Comparison) -> str:
    """The interval of a metric's difference as SVG, better to the right."""
    low, high = comparison.interval or (comparison.difference, comparison.difference)
    ends = sorted(improvement(name, end) for end in (low, high))
    limit = 1.1 * max(abs(low), abs(high), abs(comparison.difference), 0.1 * abs(comparison.base), 1e-9)
    mean = improvement(name, comparison.difference)
    return interval_chart(ends[0], mean, ends[1], limit, verdict_style(comparison))


def _format_value(value: float | None, deviation: float | None) -> str:
    """A value with the deviation that is published beside it; empty where there is none."""
    if value is None:
        return ""
    return format_number(value) + ("" if deviation is None else f" ± {format_number(deviation)}")


def _metric_row(name: str, comparison: Comparison) -> dict[str, Any]:
    metric, ends = METRICS[name], comparison.interval
    values = {
        "original": comparison.original,
        "codec": comparison.codec,
        "base": comparison.base,
        "adapted": comparison.adapted,
    }
    deviations = dict(zip(("base", "adapted"), comparison.deviations or (), strict=False))
    return {
        "title": metric.title,
        "unit": metric.unit,
        "better": comparison.better,
        "in_verdict": metric.in_verdict,
        "text": {sound: _format_value(value, deviations.get(sound)) for sound, value in values.items()},
        "sort": {sound: format_sortable(value) for sound, value in values.items()},
        "difference": format_signed(comparison.difference),
        "percent": format_percent(comparison.difference, comparison.base),
        "sort_change": f"{improvement(name, comparison.difference) / max(abs(comparison.base), 1e-9):.9g}",
        "interval": "none" if ends is None else " to ".join(format_signed(end) for end in ends),
        "chart": improvement_chart(name, comparison),
        "verdict": comparison.verdict if comparison.videos >= MIN_VIDEOS else "too few videos",
        "style": verdict_style(comparison),
        "improved": num_improved(comparison),
        "sort_improved": format_sortable(comparison.share_better),
        "clips": comparison.clips,
        "of_set": metric.of_set,
        "reference_free": metric.reference_free,
    }
