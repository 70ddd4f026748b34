"""The report: one HTML file that opens anywhere without a network, with its media beside it.

Pictures, style and script are inside the file; videos and sounds are files in `media/`, by relative paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmaudio.data.clips import Clip, LeftOut
from mmaudio.evaluation.results import Results
from mmaudio.evaluation.sync_check import DataCheck
from mmaudio.metrics.registry import METRICS
from mmaudio.model.spec import model_spec
from mmaudio.report import clip_cards as cards
from mmaudio.report import sections
from mmaudio.report import verdict as wording


@dataclass(frozen=True)
class Background:
    """What a report tells besides the results."""

    model: str
    licence: str
    history: Sequence[Mapping[str, float]]
    """Lines of training's log: step and any of train/loss, validation/loss."""
    step: int | None
    """Of the adapter; None where its file does not say."""
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
    data_check: DataCheck | None = None
    """Which training clips' sound does not fit, where that was asked for."""


def write_report(path: Path, held_out: Results, general: Results | None, background: Background) -> None:
    """Render the report to `path`, by way of a temporary name."""
    environment = Environment(
        loader=PackageLoader("mmaudio.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(context(held_out, general, background))
    part = path.with_name(f".{path.name}.part")
    part.write_text(html, encoding="utf-8")
    part.replace(path)


def context(held_out: Results, general: Results | None, background: Background) -> dict[str, Any]:
    """Everything that the template shows."""
    twice = sections.served_twice(background.clips)
    now = datetime.now(timezone.utc)
    date = f"{now.day} {now:%B %Y}"
    made = cards.cards(held_out)
    return {
        "title": f"{background.model} and its adapter: did it help?",
        "model": background.model,
        "licence": f"Base model: {background.licence}. Adapters and merged models made from it are under its terms.",
        "date": date,
        "many": f"{wording.count(len(held_out.clips), 'held-out clip')} from {wording.count(held_out.videos, 'video')}",
        "videos": list(dict.fromkeys(result.clip.video for result in held_out.clips)),
        "verdict": wording.verdict(held_out, general, background.no_forgetting, twice),
        "sources": cards.sources(held_out),
        "clips": made,
        "extremes": cards.extremes(made),
        "frequencies": cards.frequency_marks(model_spec(background.model).codec.rate),
        "tables": _tables(held_out, general, background),
        "clip_table": cards.clip_table(held_out),
        "method": wording.METHOD,
        "notes": [METRICS[name] for name in held_out.comparisons()],
        "not_computed": [
            {"title": METRICS[name].title if name in METRICS else name, "why": why}
            for name, why in held_out.not_computed.items()
        ],
        "strengths": sections.strengths(held_out),
        "training": sections.training(background.history, background.step),
        "data_check": background.data_check,
        "data": sections.data(background.clips, background.left_out),
        "settings": [{"title": title, "pairs": list(pairs.items())} for title, pairs in background.settings],
        "commands": [{"title": title, "text": text} for title, text in background.commands],
        "page": cards.page_data(held_out, made, background.model, date),
    }


def _tables(held_out: Results, general: Results | None, more: Background) -> list[dict[str, Any]]:
    count = wording.count
    tables = [
        {
            "title": "On your held-out videos",
            "intro": f"{count(len(held_out.clips), 'clip')} from {count(held_out.videos, 'video')}.",
            "rows": wording.rows(held_out.comparisons()),
        }
    ]
    if general is None:
        intro = f"Not measured: {more.no_forgetting}."
    else:
        intro = (
            f"{count(len(general.clips), 'clip')} from {count(general.videos, 'video')} ({more.general}), which have "
            "nothing to do with yours. Worse here: the adapter costs general ability; it can be turned down or off."
        )
    rows = [] if general is None else wording.rows(general.comparisons())
    return [*tables, {"title": "What was forgotten", "intro": intro, "rows": rows}]
