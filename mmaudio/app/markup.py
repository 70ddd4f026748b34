"""Pieces of HTML of the page; every text in them is escaped, and files are named as Gradio serves them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment

from mmaudio.app.experiment_list import Experiment
from mmaudio.app.take_pairs import Take
from mmaudio.utils.templates import load_templates


@functools.cache
def templates() -> Environment:
    """The templates of the page."""
    return load_templates("mmaudio.app")


def render(template: str, /, **values: Any) -> str:
    """A template with its values."""
    return templates().get_template(template).render(**values)


def file_address(path: Path) -> str:
    """Where a browser gets a file, relative to the page."""
    return f"gradio_api/file={quote(str(path.resolve()))}"


def show_takes(takes: Sequence[Take], rank_by: str, has_adapter: bool) -> str:
    """Players for takes, base and adapter side by side."""
    rows = []
    for take in takes:
        sides = [_side("Base", take.base_sound, take.base_film)] if take.base_sound else []
        sides.append(_side("With the adapter" if has_adapter else "Base", take.sound, take.film))
        rows.append({"seed": take.seed, "score": take.score, "sides": sides})
    return render("takes.html.j2", takes=rows, rank_by=rank_by)


def _side(label: str, sound: Path, film: Path | None) -> dict[str, str]:
    return {"label": label, "sound": file_address(sound), "film": "" if film is None else file_address(film)}


def show_experiment(experiment: Experiment) -> str:
    """The verdict of one experiment, and the link to its report."""
    lines = {"Model": experiment.model() or "unknown", **(experiment.verdict() or {"Verdict": "not evaluated yet"})}
    report = "" if experiment.report is None else file_address(experiment.report)
    return render("experiment.html.j2", name=experiment.name, lines=lines, report=report)
