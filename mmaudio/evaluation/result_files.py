"""Files of an evaluation: `metrics.json` (the contract with other programs), `metrics.tsv`, the trackers' scalars."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmaudio.evaluation.clip_set import GENERAL, HELD_OUT
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.evaluate import Evaluation
from mmaudio.evaluation.results import Results
from mmaudio.evaluation.scalars import write_scalars
from mmaudio.lora.checkpoint import adapter_files
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.statistics import Comparison, overall_verdict
from mmaudio.utils.escapes import encode_cell
from mmaudio.utils.files import atomic_write
from mmaudio.weights.store import file_sha256

SCHEMA = 1
"""Version of the layout of `metrics.json`."""


def write_results(evaluation: Evaluation) -> None:
    """Write all files and remove the intermediate ones; `metrics.json`, which marks results as complete, comes last."""
    config = evaluation.inputs.config
    write_tsv(config.output_dir / "metrics.tsv", evaluation.results)
    shutil.rmtree(config.intermediate_dir)
    write_scalars(config, evaluation.results, evaluation.inputs.stack.adapters[0].file.step)
    write_json(config.metrics_path, metrics_json(evaluation))


def metrics_json(evaluation: Evaluation) -> dict[str, Any]:
    """The contents of `metrics.json`."""
    inputs, sync_report = evaluation.inputs, evaluation.sync_report
    return results_json(evaluation.results, inputs.no_general_reason) | {
        **inputs_json(inputs.config, inputs.key, inputs.spec.name),
        "generic_prompts": _prompts_to_json(evaluation),
        "data_check": None if sync_report is None else sync_report.to_json(),
    }


def results_json(sets: Mapping[str, Results], no_general_reason: str) -> dict[str, Any]:
    """The entries of `metrics.json` about what was measured."""
    held_out, general = sets[HELD_OUT], sets.get(GENERAL)
    comparisons = held_out.comparisons()
    return {
        "schema": SCHEMA,
        "clips": len(held_out.clips),
        "videos": held_out.num_videos,
        "verdict": overall_verdict(comparisons),
        "metrics": _to_json(comparisons),
        "forgetting": {} if general is None else _to_json(general.comparisons()),
        "strengths": _strengths_to_json(held_out),
        "forgetting_by_strength": {} if general is None else _strengths_to_json(general),
        "recommended_strength": held_out.recommended,
        "recommendation": held_out.recommendation,
        "no_forgetting_reason": no_general_reason,
        "trained_clips": held_out.num_trained,
        "not_computed": held_out.not_computed,
    }


def inputs_json(config: EvaluationConfig, key: str, model: str) -> dict[str, Any]:
    """The entries of `metrics.json` about what was compared; `key` is the hash of all that the results depend on."""
    return {
        "inputs": key,
        "model": model,
        "adapter": str(config.checkpoint),
        "adapter_sha256": [file_sha256(adapter_files(path)[0]) for path, _ in config.adapters],
        "adapters": [{"adapter": str(path), "strength": strength.plain()} for path, strength in config.adapters],
        "draws": config.sampling.to_json(),
    }


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    """Write strict JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2, allow_nan=False) + "\n")


def write_tsv(path: Path, sets: Mapping[str, Results]) -> None:
    """Write one line per clip: set, id, video, start, then base and adapted of every metric that has values."""
    metrics = [name for name in METRICS if any(results.has_values(name) for results in sets.values())]
    columns = [(model, name) for name in metrics for model in (BASE, ADAPTED)]
    rows: list[Sequence[object]] = [["set", "id", "video", "start", *(f"{model}_{name}" for model, name in columns)]]
    for set_name, results in sets.items():
        for result in results.clips:
            clip, values = result.clip, [result.value(model, name) for model, name in columns]
            cells = ["" if value != value else f"{value:.6g}" for value in values]
            rows.append([set_name, clip.id, encode_cell(clip.video), clip.start, *cells])
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)


def _to_json(comparisons: Mapping[str, Comparison]) -> dict[str, Any]:
    return {name: asdict(comparison) for name, comparison in comparisons.items()}


def _prompts_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """What moved on generic prompts, or why that was not measured."""
    prompts, results = evaluation.inputs.prompts, evaluation.prompt_results
    if prompts is None or results is None:
        return {"reason": evaluation.inputs.no_prompts_reason or "their sounds give no value"}
    return {**results.to_json(), "captions": list(prompts.captions)}


def _strengths_to_json(results: Results) -> dict[str, Any]:
    return {f"{strength:g}": _to_json(at_strength) for strength, at_strength in results.strengths.items()}


def read_comparisons(metrics: Mapping[str, Any], key: str) -> dict[str, Comparison]:
    """The comparisons under a key of `metrics.json`, such as `metrics` or `forgetting`, without deviations."""
    comparisons = {}
    for name, fields in metrics[key].items():
        interval = None if fields["interval"] is None else tuple(fields["interval"])
        comparisons[name] = Comparison(**fields | {"interval": interval, "deviations": None})
    return comparisons
