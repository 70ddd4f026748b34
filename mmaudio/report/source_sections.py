"""Sections of a report that follow from training's log and the table of clips alone.

Where only these have changed, the results are still valid, and the sections are made anew in the report as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmaudio.data.clip_table import left_out_path, read_clips, read_left_out
from mmaudio.data.clips import Clip, LeftOut
from mmaudio.data.feature_store import read_left_out_videos
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.lora.checkpoint import AdapterFile, read_adapter
from mmaudio.report.sections import data_section, read_history, training_section
from mmaudio.utils.files import atomic_write
from mmaudio.utils.templates import load_templates

BLOCKS = ("training", "splits", "left out")
"""Names of the blocks in the template, each between two comments."""


@dataclass(frozen=True)
class ReportSources:
    """What the sections are made of."""

    history: Sequence[Mapping[str, float]]
    """Lines of training's log: step and any of train/loss, validation/loss."""
    step: int | None
    """Of the adapter; None where its file does not have it."""
    clips: Sequence[Clip]
    """Every clip of every split."""
    left_out: Sequence[LeftOut]


def read_sources(config: EvaluationConfig, adapter: AdapterFile) -> ReportSources:
    """Read training's log beside the adapter, and the table of clips with what was left out of it."""
    left_out = read_left_out(left_out_path(config.clips_tsv))
    return ReportSources(
        history=read_history(config.checkpoint.parent.parent / "metrics.jsonl"),
        step=adapter.step if adapter.data else None,  # files of other programs have no step
        clips=read_clips(config.clips_tsv),
        left_out=left_out + read_left_out_videos(config.clips_tsv, config.features_dir),
    )


def renew_report(config: EvaluationConfig) -> bool:
    """Make the sections of the config's report anew; False where they are as they were."""
    return renew_sections(config.report_path, read_sources(config, read_adapter(config.checkpoint)))


def renew_sections(path: Path, sources: ReportSources) -> bool:
    """Make the sections of a report anew, written atomically; False where they are as they were."""
    context: dict[str, Any] = {
        "training": training_section(sources.history, sources.step),
        "data": data_section(sources.clips, sources.left_out),
    }
    others: dict[str, Any] = {"strengths": {}, "sync_report": None, "settings": [], "commands": [], "licence": ""}
    template = load_templates("mmaudio.report").get_template("report_about.html.j2")
    rendered = template.render(context | others)
    html = renewed = path.read_text(encoding="utf-8")
    for name in BLOCKS:
        renewed = renewed.replace(_block(renewed, name), _block(rendered, name))
    if renewed == html:
        return False
    with atomic_write(path) as temporary:
        temporary.write_text(renewed, encoding="utf-8")
    return True


def _block(html: str, name: str) -> str:
    """The block with its comments, which no text of a user can hold: those are escaped."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    return html[html.index(start) : html.index(end) + len(end)]
