"""Section of a report on the training of several folds: a curve and a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmaudio.evaluation.results import ClipResult, Results
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.metrics.registry import METRICS, PRIMARY
from mmaudio.metrics.statistics import compare
from mmaudio.report.charts import Line, line_charts
from mmaudio.report.number_format import format_number, format_percent, format_signed, plural
from mmaudio.report.provenance import Provenance, TrainedFold
from mmaudio.report.sections import VALIDATION


def fold_training_section(held_out: Results, provenance: Provenance) -> dict[str, Any]:
    """The validation losses of all folds as charts, a note, and a table with the steps and the outcome of each fold."""
    lines = []
    for number, fold in enumerate(provenance.folds, 1):
        points = {float(row["step"]): float(row[VALIDATION]) for row in fold.history if VALIDATION in row}
        if points:
            lines.append(Line(f"fold {number}", "validation", sorted(points.items()), labels=_label(number, points)))
    steps = ", ".join(str(fold.step) for fold in provenance.folds)
    return {
        "charts": line_charts(lines, "step", "validation loss"),
        "legend": [{"name": "validation loss of each fold", "style": "validation"}] if lines else [],
        "note": f"Best steps of the folds: {steps}. The adapter of all videos was trained for {provenance.step}: their "
        "median, in proportion to the clips, without validation or early stopping.",
        "folds": [
            _fold_row(number, fold, [clip for clip in held_out.clips if clip.clip.video in fold.videos])
            for number, fold in enumerate(provenance.folds, 1)
        ],
        "fold_metric": METRICS[PRIMARY].title.lower(),
    }


def _label(number: int, points: dict[float, float]) -> list[str]:
    """The fold's number beside its first point, where the curves are furthest apart."""
    return [str(number), *[""] * (len(points) - 1)]


def _fold_row(number: int, fold: TrainedFold, clips: Sequence[ClipResult]) -> dict[str, Any]:
    base, adapted = ([clip.value(model, PRIMARY) for clip in clips] for model in (BASE, ADAPTED))
    comparison = compare(base, adapted, [clip.clip.video for clip in clips], METRICS[PRIMARY].better)
    change = "–"
    if comparison is not None:
        percent = format_percent(comparison.difference, comparison.base) or format_signed(comparison.difference)
        change = f"{format_number(comparison.base)} to {format_number(comparison.adapted)} ({percent})"
    return {
        "number": number,
        "videos": ", ".join(fold.videos),
        "clips": plural(len(clips), "clip"),
        "step": fold.step,
        "change": change,
        "report": f"folds/{number}/report/index.html",
    }
