"""The parts of a report below its numbers: strengths, training, the data that was used and left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaudio.data.clips import Clip, LeftOut
from mmaudio.evaluation.results import Results
from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.statistics import PRIMARY, Comparison
from mmaudio.report.charts import Line, both_sizes
from mmaudio.report.verdict import count, number

TRAINING, VALIDATION = "train/loss", "validation/loss"
"""Keys of training's log."""
CURVES = ((TRAINING, "training loss", "train"), (VALIDATION, "validation loss", "validation"))
NAMED = 12
"""Videos of a part that are listed by name."""
PARTS = (("train", "training"), ("val", "validation"), ("test", "held out for this report"))


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of training's `metrics.jsonl`; empty where there is none. What is no line of a step is passed over."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def training(history: Sequence[Mapping[str, float]], step: int | None) -> dict[str, Any]:
    """The losses over the steps as charts, their legend, and what they say in words; `step`: the adapter's."""
    lines = []
    for key, name, style in CURVES:
        points = {float(row["step"]): float(row[key]) for row in history if key in row}
        if points:
            lines.append(Line(name, style, sorted(points.items())))
    mark = (float(step), f"this adapter, step {step}") if step is not None else None
    return {
        "charts": both_sizes(lines, "step", "velocity loss", mark),
        "legend": [{"name": line.name, "style": line.style} for line in lines],
        "note": _training_note(history, step),
    }


def _training_note(history: Sequence[Mapping[str, float]], step: int | None) -> str:
    validation = [row[VALIDATION] for row in history if VALIDATION in row]
    if not validation:
        return "No history of the training stands beside this adapter."
    chosen = "" if step is None else f" The adapter is that of step {step}."
    return (
        f"Validation loss on clips held out from training: {number(validation[0])} before, "
        f"{number(min(validation))} at its lowest.{chosen}"
    )


def strengths(results: Results) -> dict[str, Any]:
    """The metrics that count over the adapter's strength: charts, a table; empty where no strengths were tried."""
    tried = sorted(results.strengths)
    if not tried:
        return {}
    names = [
        name for name, metric in METRICS.items() if metric.counts and any(name in results.strengths[s] for s in tried)
    ]
    best = results.recommended
    mark = None if best is None else (best, f"recommended: {best:g}")
    charts = [
        {"title": METRICS[name].title, "better": METRICS[name].better, "first": name == PRIMARY}
        | both_sizes([_strength_line(results, name)], "strength", METRICS[name].title.lower(), mark)
        for name in sorted(names, key=lambda name: name != PRIMARY)
    ]
    return {
        "charts": charts,
        "titles": [METRICS[name].title for name in names],
        "rows": [
            {
                "strength": f"{strength:g}",
                "recommended": strength == best,
                "cells": [_at_strength(results.strengths[strength].get(name)) for name in names],
            }
            for strength in tried
        ],
        "recommendation": results.recommendation,
    }


def _strength_line(results: Results, name: str) -> Line:
    points, spans = [], []
    for strength in sorted(results.strengths):
        metric = results.strengths[strength].get(name)
        if metric is not None:
            points.append((strength, metric.adapted))
            ends = metric.interval
            spans.append(None if ends is None else (metric.base + ends[0], metric.base + ends[1]))
    return Line("adapted, with the 95 % interval of its difference from the base", "validation", points, spans)


def _at_strength(metric: Comparison | None) -> dict[str, str]:
    return (
        {"text": "–", "sort": ""}
        if metric is None
        else {
            "text": number(metric.adapted),
            "sort": f"{metric.adapted:.9g}",
        }
    )


def data(clips: Sequence[Clip], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """What went in and what was left out: the counts add up."""
    splits = []
    for name, title in PARTS:
        part = [clip for clip in clips if clip.split == name]
        videos = list(dict.fromkeys(clip.video for clip in part))
        more = f" and {len(videos) - NAMED} more" if len(videos) > NAMED else ""
        which = ", ".join(videos[:NAMED]) + more
        splits.append({"name": title, "videos": len(videos), "clips": len(part), "which": which})
    unused = {item.video for item in left_out if item.start is None}
    used = {clip.video for clip in clips} - unused
    windows = Counter((item.video, item.reason) for item in left_out if item.start is not None)
    clips_used = sum(clip.video in used for clip in clips)
    summary = (
        f"{count(len(used) + len(unused), 'file')} found: {len(used)} used, {len(unused)} left out. "
        f"The used ones give {count(clips_used + windows.total(), 'window')}: {count(clips_used, 'clip')} used, "
        f"{windows.total()} left out."
    )
    lines = [{"what": item.video, "why": item.reason} for item in left_out if item.start is None]
    lines += [{"what": f"{video}, {count(n, 'window')}", "why": why} for (video, why), n in windows.items()]
    return {"summary": summary, "splits": splits, "left_out": lines, "nothing_left_out": "Nothing was left out."}


def served_twice(clips: Sequence[Clip]) -> bool:
    """Whether the held-out clips also chose the adapter, because there were too few videos for two such parts."""
    return bool(clips) and not {"val", "test"} <= {clip.split for clip in clips}
