"""Results of one fold in a file, and the results of all folds pooled.

A video's clips are those of the fold that held it out. Clips of the base's own domain are the same in every fold: the
adapters' values are averaged, the base's are alike. Metrics of whole sets of sounds are not pooled: the adapted sounds
are of several adapters, and a value depends on how many clips a set has.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmaudio.data.clips import Clip
from mmaudio.evaluation.clip_set import GENERAL, HELD_OUT
from mmaudio.evaluation.evaluate import Evaluation
from mmaudio.evaluation.results import ClipMeasurement, ClipMedia, ClipResult, Results
from mmaudio.evaluation.strength_sweep import compare_strengths
from mmaudio.metrics.registry import METRICS
from mmaudio.utils.files import atomic_write

CLIPS_FILE = "clips.json.gz"
"""The file of a fold's results, beside its `metrics.json`."""
OF_A_SET = "its value is one of a whole set of sounds of one adapter: the folds' own reports have it"


@dataclass(frozen=True)
class FoldResults:
    """Results of one fold's evaluation, by the name of the set."""

    inputs_key: str
    """Hash of everything that they depend on."""
    sets: Mapping[str, Results]
    """Clips and reasons; comparisons of whole sets are left out."""
    no_general_reason: str
    """Why forgetting was not measured, where it was not."""
    general_description: str
    """Which videos stand for the base's domain."""


def write_fold_results(path: Path, evaluation: Evaluation) -> None:
    """Write the results of a fold's evaluation."""
    inputs = evaluation.inputs
    sets = {
        name: {
            "clips": [asdict(clip) for clip in results.clips],
            "not_computed": results.not_computed | dict.fromkeys(results.set_comparisons, OF_A_SET),
        }
        for name, results in evaluation.results.items()
    }
    contents = {
        "inputs": inputs.key,
        "sets": sets,
        "no_general_reason": inputs.no_general_reason,
        "general_description": "" if inputs.general is None else inputs.general.description,
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(gzip.compress(json.dumps(contents).encode(), mtime=0))


def read_fold_results(path: Path) -> FoldResults | None:
    """The results of a fold; None where there is no such file, a damaged one or one of another version."""
    try:
        contents = json.loads(gzip.decompress(path.read_bytes()))
        sets = {
            name: Results([_read_clip(fields) for fields in content["clips"]], not_computed=content["not_computed"])
            for name, content in contents["sets"].items()
        }
        return FoldResults(contents["inputs"], sets, contents["no_general_reason"], contents["general_description"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _read_clip(fields: Mapping[str, Any]) -> ClipResult:
    measurements = {name: ClipMeasurement(**values) for name, values in fields["measurements"].items()}
    strengths = {float(strength): ClipMeasurement(**values) for strength, values in fields["strengths"].items()}
    return ClipResult(Clip(**fields["clip"]), measurements, strengths, fields["trained"], ClipMedia(**fields["media"]))


def pool_results(folds: Sequence[FoldResults], order: Mapping[str, int]) -> dict[str, Results]:
    """The results of all folds as those of one recipe, by the name of the set; `order` of the held-out clips' ids.

    Strengths are compared anew on the clips of all folds on which they were tried.
    """
    clips = sorted((clip for fold in folds for clip in fold.sets[HELD_OUT].clips), key=lambda c: order[c.clip.id])
    pooled = {HELD_OUT: Results(clips, num_folds=len(folds))}
    if all(GENERAL in fold.sets for fold in folds):
        by_clip = zip(*(fold.sets[GENERAL].clips for fold in folds), strict=True)
        pooled[GENERAL] = Results([average_clip(results) for results in by_clip])
    compare_strengths(pooled[HELD_OUT], pooled.get(GENERAL))
    for name, results in pooled.items():
        computed = results.comparisons()
        reasons = {metric: why for fold in folds for metric, why in fold.sets[name].not_computed.items()}
        results.not_computed = {metric: reasons[metric] for metric in METRICS if metric in reasons.keys() - computed}
        results.not_computed |= {m: why for m, why in reasons.items() if m not in METRICS}
    return pooled


def average_clip(results: Sequence[ClipResult]) -> ClipResult:
    """One clip with the mean values over the folds' adapters; the rest is the first fold's."""
    first = results[0]
    measurements = {sound: _average([result.measurements[sound] for result in results]) for sound in first.measurements}
    strengths = {
        strength: _average([result.strengths[strength] for result in results])
        for strength in first.strengths
        if all(strength in result.strengths for result in results)
    }
    return replace(first, measurements=measurements, strengths=strengths)


def _average(measurements: Sequence[ClipMeasurement]) -> ClipMeasurement:
    """Means by metric, not finite where one of the values is not."""
    values = {
        name: math.fsum(m.values.get(name, math.nan) for m in measurements) / len(measurements)
        for name in measurements[0].values
    }
    return replace(measurements[0], values=values)
