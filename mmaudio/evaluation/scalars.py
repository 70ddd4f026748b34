"""Scalars of an evaluation for trackers, beside those of training: what a person reads, and no more.

`metrics.json` and the report have the rest.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping

from mmaudio.evaluation.clip_set import GENERAL, HELD_OUT
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.results import Results
from mmaudio.metrics.registry import METRICS, PRIMARY
from mmaudio.utils.trackers import TrackedRun, open_trackers


def write_scalars(config: EvaluationConfig, sets: Mapping[str, Results], step: int) -> None:
    """Give the trackers the scalars of an evaluation; TensorBoard's are in `evaluation`, whose old content is removed.

    They are at the adapter's `step`, those by strength at the strength in per cent.
    """
    folder = config.output_dir / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    settings = {"adapter": config.checkpoint.name, "step": step}
    run = TrackedRun(folder, config.output_dir.resolve().name, config.project, "evaluation", settings, config.offline)
    for tracker in open_trackers(config.trackers, run):
        for percent, scalars in strength_scalars(sets):
            tracker.add_scalars(scalars, percent)
        tracker.add_scalars(result_scalars(sets), step)
        tracker.close()


def result_scalars(sets: Mapping[str, Results]) -> dict[str, float]:
    """Base and adapted of the metrics in the verdict, of the primary one on other audio, the recommended strength."""
    scalars: dict[str, float] = {}
    for name, comparison in sets[HELD_OUT].comparisons().items():
        if METRICS[name].in_verdict:
            scalars |= {f"evaluation/{name}/base": comparison.base, f"evaluation/{name}/adapted": comparison.adapted}
    forgetting = sets[GENERAL].comparisons().get(PRIMARY) if GENERAL in sets else None
    if forgetting is not None:
        scalars |= {f"forgetting/{PRIMARY}/base": forgetting.base, f"forgetting/{PRIMARY}/adapted": forgetting.adapted}
    recommended = sets[HELD_OUT].recommended
    if recommended is not None:
        scalars["evaluation/recommended_strength"] = recommended
    return scalars


def strength_scalars(sets: Mapping[str, Results]) -> Iterator[tuple[int, dict[str, float]]]:
    """Strengths in per cent, lowest first, with the primary metric on held-out clips and on other audio."""
    labels = {HELD_OUT: "evaluation", GENERAL: "forgetting"}
    for strength in sorted(sets[HELD_OUT].strengths):
        at_strength = {labels[name]: results.strengths.get(strength, {}) for name, results in sets.items()}
        scalars = {
            f"strength in per cent/{label}/{PRIMARY}": comparisons[PRIMARY].adapted
            for label, comparisons in at_strength.items()
            if PRIMARY in comparisons
        }
        if scalars:
            yield round(100 * strength), scalars
