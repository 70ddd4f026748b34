"""Metrics without a value, each with the reason, so that none is missing silently."""

from __future__ import annotations

from collections.abc import Mapping

from mmaudio.evaluation.results import Results
from mmaudio.metrics.pretrained_search import SelectedMetrics
from mmaudio.metrics.registry import METRICS

FEWEST_SAMPLES = 2
"""Samples per clip from which metrics between samples have a value."""


def explain_uncomputed(results: Results, metrics: SelectedMetrics, num_samples: int) -> dict[str, str]:
    """The reason for each selected metric without a value; `num_samples`: samples per clip and model."""
    computed = results.comparisons()
    return {name: _reason(name, results, metrics, num_samples) for name in metrics.names if name not in computed}


def terminal_lines(reasons: Mapping[str, str]) -> list[str]:
    """One line for the terminal that names the metrics without a value; none where every metric has one."""
    return [f"  not computed: {', '.join(reasons)} (the report says why)"] if reasons else []


def _reason(name: str, results: Results, metrics: SelectedMetrics, num_samples: int) -> str:
    if name in results.not_computed:
        return results.not_computed[name]
    if name in metrics.missing:
        return metrics.missing[name]
    if METRICS[name].compare_samples is not None and num_samples < FEWEST_SAMPLES:
        return "needs two samples per clip (--samples 2)"
    return f"no clip has a value: it needs {METRICS[name].needs or 'sounds that can be measured'}"
