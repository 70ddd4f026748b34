"""The report: one HTML file that opens anywhere without a network, with its media beside it.

Pictures, style and script are inside the file; videos and sounds are files in `media/`, by relative paths.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmaudio.data.clips import Clip, LeftOut
from mmaudio.evaluation import wording
from mmaudio.evaluation.charts import Line, line_chart
from mmaudio.evaluation.media import onset_marks
from mmaudio.evaluation.metrics import METRICS
from mmaudio.evaluation.results import ADAPTED, BASE, ORIGINAL, ClipResult, Results
from mmaudio.evaluation.statistics import PRIMARY

SOURCES = [
    {"key": ORIGINAL, "title": "Original"},
    {"key": BASE, "title": "Base"},
    {"key": ADAPTED, "title": "Adapted"},
]
TRAINING, VALIDATION = "train/loss", "validation/loss"
"""Keys of training's log."""
NAMED = 12
"""Videos of a part that are listed by name."""


@dataclass(frozen=True)
class Background:
    """What a report tells besides the results."""

    model: str
    licence: str
    history: Sequence[Mapping[str, float]]
    """Lines of training's log: step and any of train/loss, validation/loss."""
    best_step: int | None
    clips: Sequence[Clip]
    """Every clip that was found, of every split."""
    left_out: Sequence[LeftOut]
    settings: Sequence[tuple[str, Mapping[str, object]]]
    """Titles and name-value pairs."""
    commands: Sequence[tuple[str, str]]
    no_forgetting: str
    """Why forgetting was not measured, where it was not."""
    general: str
    """Which videos stand for the base's domain."""


def write_report(path: Path, held_out: Results, general: Results | None, background: Background) -> None:
    """Render the report to `path`, by way of a temporary name."""
    environment = Environment(
        loader=PackageLoader("mmaudio.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("report.html.j2").render(context(held_out, general, background))
    part = path.with_name(f".{path.name}.part")
    part.write_text(html, encoding="utf-8")
    part.replace(path)


def context(held_out: Results, general: Results | None, background: Background) -> dict[str, Any]:
    """Everything that the template shows."""
    metrics = held_out.comparisons()
    forgetting = general.comparisons() if general is not None else {}
    curve, legend = training_curve(background.history, background.best_step)
    return {
        "title": f"{background.model} and its adapter: did it help?",
        "model": background.model,
        "licence": f"Base model: {background.licence}. Adapters and merged models made from it are under its terms.",
        "date": datetime.now(timezone.utc).strftime("%d %B %Y"),
        "videos": held_out.videos,
        "verdict": wording.verdict(metrics, forgetting, background.no_forgetting, served_twice(background.clips)),
        "tables": _tables(held_out, metrics, general, forgetting, background),
        "method": wording.METHOD,
        "notes": list(METRICS.values()),
        "sources": SOURCES,
        "clips": [_clip(index, result) for index, result in enumerate(held_out.clips, 1)],
        "curve": curve,
        "legend": legend,
        "training_note": _training_note(background),
        "data": data_section(background.clips, background.left_out),
        "settings": [{"title": title, "pairs": list(pairs.items())} for title, pairs in background.settings],
        "commands": [{"title": title, "text": text} for title, text in background.commands],
    }


def _tables(
    held_out: Results,
    metrics: Mapping[str, Any],
    general: Results | None,
    forgetting: Mapping[str, Any],
    more: Background,
) -> list[dict[str, Any]]:
    tables = [{
        "title": "On your held-out videos",
        "intro": f"{_count(len(held_out.clips), 'clip')} from {_count(held_out.videos, 'video')}.",
        "rows": wording.rows(metrics),
    }]  # fmt: skip
    if general is None:
        intro = f"Not measured: {more.no_forgetting}."
    else:
        intro = (
            f"{_count(len(general.clips), 'clip')} from {_count(general.videos, 'video')} ({more.general}), which have "
            "nothing to do with yours. Worse here: the adapter costs general ability; it can be turned down or off."
        )
    return [*tables, {"title": "What was forgotten", "intro": intro, "rows": wording.rows(forgetting)}]


def _clip(index: int, result: ClipResult) -> dict[str, Any]:
    clip, sounds = result.clip, result.sounds
    seconds = clip.end - clip.start
    base, adapted = sounds[BASE].values, sounds[ADAPTED].values
    gain = base[PRIMARY] - adapted[PRIMARY]
    original = sounds[ORIGINAL].onsets
    marks = {name: onset_marks(sounds[name].onsets, original, seconds) for name in (ORIGINAL, BASE, ADAPTED)}
    return {
        "index": index,
        "id": clip.id,
        "video": clip.video,
        "span": f"{clip.start:g} to {clip.end:g} s",
        "caption": clip.caption,
        "gain": f"{gain:.6f}" if math.isfinite(gain) else "0",
        "media": result.media,
        "poster": result.poster,
        "mels": result.mels,
        "onsets": marks,
        "numbers": wording.clip_numbers(base, adapted),
    }


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of training's `metrics.jsonl`; empty where there is none. A torn last line is passed over."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def training_curve(history: Sequence[Mapping[str, float]], best: int | None) -> tuple[str, list[dict[str, str]]]:
    """The losses over the steps as SVG, and the legend; empty without a history."""
    lines = []
    curves = ((TRAINING, "training loss", "train"), (VALIDATION, "validation loss", "validation"))
    for key, name, style in curves:
        points = {float(row["step"]): float(row[key]) for row in history if key in row}
        if points:
            lines.append(Line(name, style, sorted(points.items())))
    mark = (float(best), f"best, step {best}") if best is not None else None
    return line_chart(lines, "step", "velocity loss", mark), [
        {"name": line.name, "style": line.style} for line in lines
    ]


def _training_note(background: Background) -> str:
    validation = [row[VALIDATION] for row in background.history if VALIDATION in row]
    if not validation:
        return "No history of the training stands beside this adapter."
    best = "" if background.best_step is None else f" The adapter is that of step {background.best_step}."
    return (
        f"Validation loss on clips held out from training: {wording.number(validation[0])} before, "
        f"{wording.number(min(validation))} at its lowest.{best}"
    )


def data_section(clips: Sequence[Clip], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """What went in and what was left out: the counts add up."""
    splits = []
    for name, title in (("train", "training"), ("val", "validation"), ("test", "held out for this report")):
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
        f"{_count(len(used) + len(unused), 'file')} found: {len(used)} used, {len(unused)} left out. "
        f"The used ones give {_count(clips_used + windows.total(), 'window')}: {_count(clips_used, 'clip')} used, "
        f"{windows.total()} left out."
    )
    rows = [{"what": item.video, "why": item.reason} for item in left_out if item.start is None]
    rows += [{"what": f"{video}, {_count(n, 'window')}", "why": why} for (video, why), n in windows.items()]
    return {"summary": summary, "splits": splits, "left_out": rows, "nothing_left_out": "Nothing was left out."}


def served_twice(clips: Sequence[Clip]) -> bool:
    """Whether the held-out clips also chose the adapter, because there were too few videos for two such parts."""
    return bool(clips) and not {"val", "test"} <= {clip.split for clip in clips}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
