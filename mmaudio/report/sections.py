"""Sections of a report below its numbers: strengths, training, the data that was used and left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaudio.data.clips import Clip, LeftOut
from mmaudio.evaluation.results import Results
from mmaudio.metrics.registry import METRICS, PRIMARY
from mmaudio.metrics.statistics import Comparison
from mmaudio.report.charts import Line, line_charts
from mmaudio.report.number_format import format_number, format_sortable, plural

TRAINING, VALIDATION = "train/loss", "validation/loss"
"""Keys of training's log."""
CURVES = ((TRAINING, "training loss", "train"), (VALIDATION, "validation loss", "validation"))
"""Key, name and style of each curve of the training chart."""
MAX_LISTED = 12
"""Videos of a split that are listed by name."""
SPLITS = (("train", "training"), ("val", "validation"), ("test", "held out for this report"))
"""Names and titles."""


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of training's `metrics.jsonl` that have a step; empty where there is no such file."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def training_section(history: Sequence[Mapping[str, float]], step: int | None) -> dict[str, Any]:
    """The losses over the steps as charts, their legend, and a note; `step`: the adapter's."""
    lines = []
    for key, name, style in CURVES:
        points = {float(row["step"]): float(row[key]) for row in history if key in row}
        if points:
            lines.append(Line(name, style, sorted(points.items())))
    mark = (float(step), f"this adapter, step {step}") if step is not None else None
    return {
        "charts": line_charts(lines, "step", "velocity loss", mark),
        "legend": [{"name": line.name, "style": line.style} for line in lines],
        "note": _training_note(history, step),
        "folds": [],
    }


def _training_note(history: Sequence[Mapping[str, float]], step: int | None) -> str:
    losses = [row[VALIDATION] for row in history if VALIDATION in row]
    if not losses:
        return "There is no training history beside this adapter."
    adapter = "" if step is None else f" The adapter is that of step {step}."
    return (
        f"Validation loss on clips held out from training: {format_number(losses[0])} before, "
        f"{format_number(min(losses))} at its lowest.{adapter}"
    )


def strength_section(results: Results, general: Results | None = None) -> dict[str, Any]:
    """The metrics of the verdict over the adapter's strength, and what each strength forgets: charts and a table.

    Empty where no strength was tried.
    """
    if not results.strengths:
        return {}
    comparisons = results.strengths.values()
    names = [n for n, metric in METRICS.items() if metric.in_verdict and any(n in at for at in comparisons)]
    recommended = results.recommended
    mark = None if recommended is None else (recommended, f"recommended: {recommended:g}")
    charts = [
        {"title": METRICS[name].title, "better": f"{METRICS[name].better} is better"}
        | line_charts([_strength_line(results, name)], "strength", METRICS[name].title.lower(), mark)
        for name in sorted(names, key=lambda name: name != PRIMARY)
    ]
    forgetting = {} if general is None else general.strengths
    columns = [(results.strengths, name) for name in names] + [(forgetting, PRIMARY)] * bool(forgetting)
    rows = [
        {
            "strength": f"{strength:g}",
            "recommended": strength == recommended,
            "cells": [_strength_cell(by_metric[strength].get(name)) for by_metric, name in columns],
        }
        for strength in sorted(results.strengths)
    ]
    titles = [METRICS[name].title for name in names] + [f"{METRICS[PRIMARY].title}, other audio"] * bool(forgetting)
    charts = [*_gain_charts(results, forgetting), *charts]
    return {"charts": charts, "titles": titles, "rows": rows, "recommendation": results.recommendation}


def _gain_charts(results: Results, forgetting: Mapping[float, Mapping[str, Comparison]]) -> list[dict[str, str]]:
    """The chart of what is gained on held-out videos against what is forgotten, a point by strength; none without."""
    points, labels = [], []
    for strength in sorted(results.strengths):
        gain, loss = (strengths.get(strength, {}).get(PRIMARY) for strengths in (results.strengths, forgetting))
        if gain is None or loss is None or not gain.base or not loss.base:
            continue
        points.append((100 * loss.difference / loss.base, -100 * gain.difference / gain.base))
        labels.append(f"{strength:g}" + ", recommended" * (strength == results.recommended))
    if not points:
        return []
    line = Line("gain against forgetting, by strength", "validation", points, labels=labels)
    chart = line_charts([line], "further away on other audio, %", "closer on your videos, %")
    return [{"title": "Gain against forgetting", "better": "upper left is better"} | chart]


def _strength_line(results: Results, name: str) -> Line:
    points, intervals = [], []
    for strength in sorted(results.strengths):
        comparison = results.strengths[strength].get(name)
        if comparison is not None:
            points.append((strength, comparison.adapted))
            ends = comparison.interval
            intervals.append(None if ends is None else (comparison.base + ends[0], comparison.base + ends[1]))
    return Line("adapted, with the 95 % interval of its difference from the base", "validation", points, intervals)


def _strength_cell(comparison: Comparison | None) -> dict[str, str]:
    if comparison is None:
        return {"text": "–", "sort": ""}
    return {"text": format_number(comparison.adapted), "sort": format_sortable(comparison.adapted)}


def data_section(
    clips: Sequence[Clip], left_out: Sequence[LeftOut], folds: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """The clips by split, or by the fold that held their videos out; and what was left out and why. Counts add up."""
    unused = {item.video for item in left_out if item.start is None}
    used = {clip.video for clip in clips} - unused
    windows = Counter((item.video, item.reason) for item in left_out if item.start is not None)
    num_used = sum(clip.video in used for clip in clips)
    summary = (
        f"{plural(len(used) + len(unused), 'file')} found: {len(used)} used, {len(unused)} left out. "
        f"The used ones give {plural(num_used + windows.total(), 'window')}: {plural(num_used, 'clip')} used, "
        f"{windows.total()} left out."
    )
    rows = [{"name": item.video, "reason": item.reason} for item in left_out if item.start is None]
    for (video, reason), number in windows.items():
        rows.append({"name": f"{video}, {plural(number, 'window')}", "reason": reason})
    if folds:
        titles = [f"held out in fold {number}" for number in range(1, len(folds) + 1)]
        splits = [_split_row(t, [c for c in clips if c.video in fold]) for t, fold in zip(titles, folds, strict=True)]
    else:
        splits = [_split_row(title, [clip for clip in clips if clip.split == name]) for name, title in SPLITS]
    return {"summary": summary, "splits": splits, "left_out": rows}


def _split_row(title: str, clips: Sequence[Clip]) -> dict[str, Any]:
    videos = list(dict.fromkeys(clip.video for clip in clips))
    remaining = f" and {len(videos) - MAX_LISTED} more" if len(videos) > MAX_LISTED else ""
    names = ", ".join(videos[:MAX_LISTED]) + remaining
    return {"name": title, "videos": len(videos), "clips": len(clips), "video_names": names}


def validation_doubles_as_test(clips: Sequence[Clip]) -> bool:
    """Whether the held-out clips also chose the adapter, because there were too few videos for two such splits."""
    return bool(clips) and not {"val", "test"} <= {clip.split for clip in clips}
