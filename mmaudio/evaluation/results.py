"""What an evaluation found, and its files: `metrics.json` (the contract with other programs) and `metrics.tsv`."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmaudio.data.clips import Clip
from mmaudio.evaluation.measure import Sound
from mmaudio.evaluation.metrics import METRICS
from mmaudio.evaluation.statistics import Comparison, compare, overall

SCHEMA = 1
ORIGINAL, BASE, ADAPTED = "original", "base", "adapted"


@dataclass
class ClipResult:
    """One clip: its sounds by name (original, base, adapted), and what the report shows of it."""

    clip: Clip
    sounds: dict[str, Sound]
    media: dict[str, str] = field(default_factory=dict)
    """Files relative to the report: `video` and one per sound."""
    mels: dict[str, str] = field(default_factory=dict)
    """PNG data URIs by sound."""
    poster: str = ""
    """The picture before it plays, a data URI."""


@dataclass
class Results:
    """The clips of one set of videos."""

    clips: list[ClipResult]

    @property
    def videos(self) -> int:
        """How many source videos there are."""
        return len({result.clip.video for result in self.clips})

    def comparisons(self) -> dict[str, Comparison]:
        """Every metric that has a value on at least one clip, in the report's order."""
        found = {}
        for name, metric in METRICS.items():
            base, adapted = ([clip.sounds[model].values[name] for clip in self.clips] for model in (BASE, ADAPTED))
            result = compare(base, adapted, [clip.clip.video for clip in self.clips], metric.better)
            if result is not None:
                found[name] = result
        return found


def summary(held_out: Results, general: Results | None, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of `metrics.json`; `extra` says what was compared and how."""
    metrics = held_out.comparisons()
    forgetting = general.comparisons() if general is not None else {}
    return {
        "schema": SCHEMA,
        "clips": len(held_out.clips),
        "videos": held_out.videos,
        "verdict": overall(metrics),
        "metrics": {name: asdict(metric) for name, metric in metrics.items()},
        "forgetting": {name: asdict(metric) for name, metric in forgetting.items()},
        **extra,
    }


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Write strict JSON to a temporary name and rename it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(contents, indent=2, allow_nan=False) + "\n")
    part.replace(path)


def write_tsv(path: Path, sets: Mapping[str, Results]) -> None:
    """One line per clip: which set, id, video, start, then base and adapted of every metric (empty: no value)."""
    columns = [f"{model}_{name}" for name in METRICS for model in (BASE, ADAPTED)]
    rows: list[Sequence[object]] = [["set", "id", "video", "start", *columns]]
    for name, results in sets.items():
        for result in results.clips:
            values = [result.sounds[model].values[metric] for metric in METRICS for model in (BASE, ADAPTED)]
            clip = result.clip
            rows.append([name, clip.id, clip.video, clip.start, *("" if v != v else f"{v:.6g}" for v in values)])
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
