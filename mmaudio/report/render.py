"""Rendering of the report: one HTML file that opens anywhere without a network, with its media beside it.

Images, style and script are inside the file; videos and audio are files in `media/`, by relative paths.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmaudio.evaluation.results import Results
from mmaudio.metrics.registry import METRICS
from mmaudio.model.spec import model_spec
from mmaudio.report.clip_cards import (
    available_sounds,
    clip_cards,
    clip_table,
    frequency_marks,
    largest_changes,
    page_data,
)
from mmaudio.report.fold_section import fold_training_section
from mmaudio.report.metric_table import metric_rows
from mmaudio.report.number_format import plural
from mmaudio.report.provenance import Provenance
from mmaudio.report.sections import data_section, strength_section, training_section, validation_doubles_as_test
from mmaudio.report.verdict import FOLD_METHOD, METHOD, verdict_section
from mmaudio.utils.files import atomic_write
from mmaudio.utils.templates import load_templates


def write_report(path: Path, held_out: Results, general: Results | None, provenance: Provenance) -> None:
    """Render the report and write it atomically."""
    template = load_templates("mmaudio.report").get_template("report.html.j2")
    html = template.render(build_context(held_out, general, provenance))
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def build_context(held_out: Results, general: Results | None, provenance: Provenance) -> dict[str, Any]:
    """The template's variables."""
    now = datetime.now(timezone.utc)
    date = f"{now.day} {now:%B %Y}"
    cards = clip_cards(held_out)
    folds = provenance.folds
    reservations = provenance.no_general_reason, not folds and validation_doubles_as_test(provenance.clips)
    return {
        "title": f"{provenance.model} and its adapter: did it help?",
        "model": provenance.model,
        "licence": f"Base model: {provenance.licence}. Adapters and merged models made from it are under its terms.",
        "date": date,
        "counts": f"{plural(len(held_out.clips), 'held-out clip')} from {plural(held_out.num_videos, 'video')}"
        + (f" in {len(folds)} folds" if folds else ""),
        "videos": list(dict.fromkeys(card["video"] for card in cards)),
        "played": _describe_played(len(cards), len(held_out.clips)),
        "verdict": verdict_section(held_out, general, *reservations, provenance.prompts),
        "sounds": available_sounds(held_out),
        "clips": cards,
        "extremes": largest_changes(cards),
        "frequencies": frequency_marks(model_spec(provenance.model).codec.sample_rate),
        "tables": _metric_tables(held_out, general, provenance),
        "clip_table": clip_table(held_out),
        "method": METHOD + (FOLD_METHOD if folds else ""),
        "metrics": [METRICS[name] for name in held_out.comparisons()],
        "not_computed": [
            {"title": METRICS[name].title if name in METRICS else name, "reason": reason}
            for name, reason in held_out.not_computed.items()
        ],
        "strengths": strength_section(held_out, general),
        "training": fold_training_section(held_out, provenance)
        if folds
        else training_section(provenance.history, provenance.step),
        "sync_report": provenance.sync_report,
        "data": data_section(provenance.clips, provenance.left_out, [fold.videos for fold in folds]),
        "settings": [{"title": title, "pairs": list(pairs.items())} for title, pairs in provenance.settings],
        "commands": [{"title": title, "text": text} for title, text in provenance.commands],
        "page": page_data(held_out, cards, provenance.model, date),
    }


def _describe_played(num_played: int, num_clips: int) -> str:
    """Which clips the page plays, in a sentence; empty where it plays all."""
    if num_played == num_clips:
        return ""
    return (
        f"Of the {plural(num_clips, 'clip')}, {num_played} are played here: the most improved, the most worsened, and "
        "others evenly over the videos. All count in the numbers and stand in the table."
    )


def _metric_tables(held_out: Results, general: Results | None, provenance: Provenance) -> list[dict[str, Any]]:
    """The tables of metrics: on the held-out clips, and on those of the base model's own domain."""
    intro = f"{plural(len(held_out.clips), 'clip')} from {plural(held_out.num_videos, 'video')}."
    table = {"title": "On your held-out videos", "intro": intro, "rows": metric_rows(held_out.comparisons())}
    if general is None:
        intro, rows = f"Not measured on videos: {provenance.no_general_reason}.", []
    else:
        counts = f"{plural(len(general.clips), 'clip')} from {plural(general.num_videos, 'video')}"
        intro = (
            f"{counts} ({provenance.general_description}), which have nothing to do with yours. Worse here: the "
            "adapter costs general ability; it can be turned down or off."
        )
        rows = metric_rows(general.comparisons())
    return [table, {"title": "What was forgotten", "intro": f"{intro} {provenance.prompts}".rstrip(), "rows": rows}]
