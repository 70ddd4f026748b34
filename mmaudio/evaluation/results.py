"""What an evaluation found, and its files: `metrics.json` (the contract with other programs) and `metrics.tsv`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmaudio.data.clips import Clip
from mmaudio.evaluation.inference import Sound
from mmaudio.metrics.registry import ADAPTED, BASE, CODEC, METRICS, ORIGINAL
from mmaudio.metrics.statistics import Comparison, compare, mean_by_video, overall

SCHEMA = 1


@dataclass
class ClipResult:
    """One clip: its sounds by name (original, codec, base, adapted), and what the report shows of it.

    A sound's values are means over its takes; what is played and drawn is the first take.
    """

    clip: Clip
    sounds: dict[str, Sound]
    strengths: dict[float, Sound] = field(default_factory=dict)
    """What the adapter made at other strengths than 1, where they were tried on this clip."""
    trained: bool = False
    """Whether its source video was trained on: only `--include-training` lets such a clip in."""
    media: dict[str, str] = field(default_factory=dict)
    """Files relative to the report: `video` and one per sound."""
    mels: dict[str, str] = field(default_factory=dict)
    """PNG data URIs by sound."""
    poster: str = ""
    """The picture before it plays, a data URI."""


@dataclass
class Results:
    """The clips of one set of videos, and what was found for the whole set."""

    clips: list[ClipResult]
    sets: dict[str, Comparison] = field(default_factory=dict)
    """Metrics of the whole set of sounds (KAD, FD, ISC), by name."""
    strengths: dict[float, dict[str, Comparison]] = field(default_factory=dict)
    """Base against the adapter at each strength tried (0: the base, 1: as trained), by metric; empty: not tried."""
    recommended: float | None = None
    """The strength to use by the rule of `strengths.recommend`; None where none can be told from the base."""
    recommendation: str = ""
    """That rule's outcome in a sentence."""
    not_computed: dict[str, str] = field(default_factory=dict)
    """Metrics that have no value here: why, or which file they need."""

    @property
    def videos(self) -> int:
        """How many source videos there are."""
        return len({result.clip.video for result in self.clips})

    @property
    def trained(self) -> int:
        """How many clips are of source videos that were trained on."""
        return sum(result.trained for result in self.clips)

    def values(self, sound: str, metric: str) -> list[float]:
        """The metric of the sound called `sound` by clip, NaN where there is none."""
        return [
            result.sounds[sound].values.get(metric, math.nan) if sound in result.sounds else math.nan
            for result in self.clips
        ]

    def knows(self, metric: str) -> bool:
        """Whether any clip has a value of the metric for what a model made."""
        return any(value == value for model in (BASE, ADAPTED) for value in self.values(model, metric))

    def comparisons(self) -> dict[str, Comparison]:
        """Every metric that has a value on at least one clip, in the report's order."""
        videos = [result.clip.video for result in self.clips]
        found = {}
        for name, metric in METRICS.items():
            if name in self.sets:
                found[name] = self.sets[name]
                continue
            base, adapted = (self.values(model, name) for model in (BASE, ADAPTED))
            result = compare(base, adapted, videos, metric.better)
            if result is not None:
                original, codec = (mean_by_video(self.values(sound, name), videos) for sound in (ORIGINAL, CODEC))
                found[name] = replace(result, original=original, codec=codec)
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
        "strengths": {
            f"{strength:g}": {name: asdict(metric) for name, metric in metrics.items()}
            for strength, metrics in held_out.strengths.items()
        },
        "recommended_strength": held_out.recommended,
        "not_computed": held_out.not_computed,
        **extra,
    }


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Write strict JSON to a temporary name and rename it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(contents, indent=2, allow_nan=False) + "\n")
    part.replace(path)


def write_tsv(path: Path, sets: Mapping[str, Results]) -> None:
    """One line per clip: which set, id, video, start, then base and adapted of every metric that has values."""
    names = [name for name in METRICS if any(results.knows(name) for results in sets.values())]
    columns = [f"{model}_{name}" for name in names for model in (BASE, ADAPTED)]
    rows: list[Sequence[object]] = [["set", "id", "video", "start", *columns]]
    for name, results in sets.items():
        for result in results.clips:
            sounds = [(result.sounds[model], metric) for metric in names for model in (BASE, ADAPTED)]
            values = [sound.values.get(metric, math.nan) for sound, metric in sounds]
            clip = result.clip
            rows.append([name, clip.id, clip.video, clip.start, *("" if v != v else f"{v:.6g}" for v in values)])
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
