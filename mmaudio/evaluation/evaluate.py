"""Evaluation of an adapter: base against adapted model on clips that training never saw.

    evaluation = evaluate(EvaluationConfig(checkpoint, video_root, clips_tsv, features_dir, output_dir))
    write_results(evaluation)    # evaluation.result_files

Each model in turn gives its losses and its latents (a few kilobytes per clip); then the sounds are decoded, measured
and written clip by clip, so that memory does not grow with the number of clips.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmaudio.evaluation.clip_set import GENERAL, HELD_OUT, ClipSet
from mmaudio.evaluation.clip_writer import ClipWriter
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.generic_prompts import measure_prompts
from mmaudio.evaluation.inputs import EvaluationInputs, is_valid, load_inputs
from mmaudio.evaluation.measurement import measure_clips
from mmaudio.evaluation.model_runs import run_models
from mmaudio.evaluation.prompt_results import PromptResults
from mmaudio.evaluation.results import Results
from mmaudio.evaluation.strength_sweep import compare_strengths
from mmaudio.evaluation.sync_report import SyncReport
from mmaudio.generation.sampler import load_sampler
from mmaudio.metrics.pretrained_search import load_metric_models
from mmaudio.utils.progress import working


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    inputs: EvaluationInputs
    results: Mapping[str, Results]
    """By the name of the set: `held-out`, and `general` where forgetting was measured."""
    sync_report: SyncReport | None
    """Outcome of `--check-data`."""
    times: Mapping[str, float]
    """Seconds of each phase."""
    prompt_results: PromptResults | None = None
    """On generic prompts; None where these could not be measured."""


def evaluate(
    config: EvaluationConfig, writer: ClipWriter | None = None, on_start: Callable[[], object] = lambda: None
) -> Evaluation | None:
    """Compare the models, or return None where the results in the output folder are still valid.

    `writer` writes the media of the held-out clips. `on_start` is called once the inputs are loaded and checked, before
    the output folder is looked at. Raises as `load_inputs` does.
    """
    start = time.monotonic()
    with working("reading the adapter, the clips and their features"):
        inputs = load_inputs(config)
    on_start()
    if is_valid(config.metrics_path, inputs.key) and is_report_whole(config.report_path):
        return None
    sync_report = None if inputs.sync_check is None else inputs.sync_check.run()
    clip_sets = build_clip_sets(inputs)
    sampler = load_sampler(inputs.spec.name, config.weights, config.device, dtype=config.dtype)
    run_models(sampler, inputs, clip_sets, config.intermediate_dir / inputs.key[:16])
    sampled = time.monotonic()
    with working("loading the models of the metrics"):
        metrics = load_metric_models(inputs.metric_sources, inputs.metric_names)
    remove_old_results(config, writer)
    results = {
        name: measure_clips(sampler, clips, writer if name == HELD_OUT else None, metrics, config.report_clips)
        for name, clips in clip_sets.items()
    }
    with working("comparing the strengths"):
        compare_strengths(results[HELD_OUT], results.get(GENERAL))
    prompts = inputs.prompts
    prompt_results = None if prompts is None else measure_prompts(sampler, prompts, metrics.pretrained)
    times = {"losses and latents": sampled - start, "decoding and measuring": time.monotonic() - sampled}
    if prompts is not None:
        times["generic prompts, of these"] = prompts.elapsed
    return Evaluation(inputs, results, sync_report, times, prompt_results)


def is_report_whole(page: Path) -> bool:
    """Whether the report and every file that it plays are there."""
    if not page.is_file():
        return False
    names = set(re.findall(r'"(media/[^"]+)"', page.read_text(encoding="utf-8")))
    return all((page.parent / name).is_file() for name in names)


def build_clip_sets(inputs: EvaluationInputs) -> dict[str, ClipSet]:
    """The sets of clips to compare, by name."""
    clip_sets = {HELD_OUT: ClipSet(inputs.config.video_root, inputs.held_out, trained_ids=inputs.trained_ids)}
    if inputs.general is not None:
        clip_sets[GENERAL] = ClipSet(inputs.general.video_root, inputs.general.features)
    return clip_sets


def remove_old_results(config: EvaluationConfig, writer: ClipWriter | None) -> None:
    """Remove the mark of valid results, then the old media: a report must not mix those of two evaluations."""
    config.metrics_path.unlink(missing_ok=True)
    if writer is not None:
        writer.clear()
