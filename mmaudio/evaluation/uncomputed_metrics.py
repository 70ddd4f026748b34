"""Metrics that have no value: each with the reason, so that nothing is missing silently."""

from __future__ import annotations

from collections.abc import Mapping

from mmaudio.evaluation.results import Results
from mmaudio.metrics.pretrained_metrics import Wanted
from mmaudio.metrics.registry import TAKES

NEEDS = {
    "mel_l1_loud": "a clip whose original has a loud cell",
    "desync": "clips whose picture and sound are at least 8 s long",
    "stft_distance": "a clip whose original is not silent",
    "loudness_difference": "clips of 0.4 s or more",
    "onset_lag": "clips whose sounds have onsets",
    "centroid_difference": "sounds that are not digital silence",
    "bandwidth_difference": "sounds that are not digital silence",
    "near_silent": "a clip whose original is audible",
    "clap": "clips that have a caption",
}
"""What a clip has to have for a value."""


def not_computed(results: Results, wanted: Wanted, takes: int) -> dict[str, str]:
    """Why each wanted metric without a value has none; `takes`: sounds per clip and model."""
    known = results.comparisons()
    return {name: _reason(name, results, wanted, takes) for name in wanted.names if name not in known}


def terminal(reasons: Mapping[str, str]) -> list[str]:
    """One line that names the metrics without a value, for a terminal; none where there is no such metric."""
    return [f"  not computed: {', '.join(reasons)} (the report says why)"] if reasons else []


def _reason(name: str, results: Results, wanted: Wanted, takes: int) -> str:
    if name in results.not_computed:
        return results.not_computed[name]
    if name in wanted.missing:
        return wanted.missing[name]
    if name in TAKES and takes < 2:
        return "needs two samples per clip (--samples 2)"
    return f"no clip has a value: it needs {NEEDS.get(name, 'sounds that can be measured')}"
