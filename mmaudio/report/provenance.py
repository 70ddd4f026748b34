"""Provenance of an evaluation's results: the data, the settings, the versions, the commands that repeat it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from mmaudio.data.clips import Clip, LeftOut
from mmaudio.evaluation.clip_set import HELD_OUT
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.evaluate import Evaluation
from mmaudio.evaluation.inputs import EvaluationInputs
from mmaudio.evaluation.sync_report import SyncReport
from mmaudio.lora.checkpoint import AdapterFile
from mmaudio.lora.stack import AdapterStack, StackedAdapter
from mmaudio.model.spec import ModelSpec
from mmaudio.report.commands import build_commands
from mmaudio.report.source_sections import read_sources
from mmaudio.utils.nested_names import flatten

PACKAGES = ("mmaudio-lora", "torch", "torchaudio", "peft", "open_clip_torch", "av", "numpy", "scipy")
MAX_TARGETS = 8
"""Targets of an adapter that are listed by name."""


@dataclass(frozen=True)
class TrainedFold:
    """How one fold was trained."""

    videos: Sequence[str]
    """Those that it held out."""
    step: int
    """Its best one."""
    history: Sequence[Mapping[str, float]]
    """Lines of its training's log."""


@dataclass(frozen=True)
class Provenance:
    """Where the results of an evaluation come from."""

    model: str
    licence: str
    history: Sequence[Mapping[str, float]]
    """Lines of training's log: step and any of train/loss, validation/loss."""
    step: int | None
    """Of the adapter; None where its file does not have it."""
    clips: Sequence[Clip]
    """Every clip of every split."""
    left_out: Sequence[LeftOut]
    settings: Sequence[tuple[str, Mapping[str, object]]]
    """Titles and name-value pairs."""
    commands: Sequence[tuple[str, str]]
    """Titles and command lines."""
    no_general_reason: str
    """Why forgetting was not measured, where it was not."""
    general_description: str
    """Which videos stand for the base's domain."""
    sync_report: SyncReport | None = None
    """Outcome of the sync check, where there was one."""
    prompts: str = ""
    """How far the sounds of generic prompts moved, in a sentence; empty where that was not measured."""
    folds: Sequence[TrainedFold] = ()
    """The folds that the results are pooled from; the rest is then of the adapter of all videos."""


def collect_provenance(evaluation: Evaluation) -> Provenance:
    """Read the provenance from the files of the adapter, its training and its data."""
    inputs = evaluation.inputs
    config, stack, spec, general = inputs.config, inputs.stack, inputs.spec, inputs.general
    adapter = stack.adapters[0].file
    sources = read_sources(config, adapter)
    return Provenance(
        model=spec.name,
        licence=spec.licence,
        history=sources.history,
        step=sources.step,
        clips=sources.clips,
        left_out=sources.left_out,
        settings=[
            ("This evaluation", evaluation_settings(config, spec) | _prompt_settings(inputs)),
            *(setting for number in range(len(stack.adapters)) for setting in describe_adapter(stack, number)),
            ("Versions", collect_versions()),
            ("Times", {phase: f"{seconds:.0f} s" for phase, seconds in evaluation.times.items()}),
        ],
        commands=build_commands(config, spec, adapter, evaluation.results[HELD_OUT].recommended),
        no_general_reason=inputs.no_general_reason,
        general_description="" if general is None else general.description,
        sync_report=evaluation.sync_report,
        prompts="" if evaluation.prompt_results is None else evaluation.prompt_results.sentence,
    )


def evaluation_settings(config: EvaluationConfig, spec: ModelSpec) -> dict[str, object]:
    """The settings of an evaluation by their names in the report."""
    sampling = config.sampling
    return {
        "seed": sampling.seed,
        "samples per clip": sampling.samples,
        "solver steps": spec.num_steps if sampling.num_steps is None else sampling.num_steps,
        "guidance scale": spec.guidance_scale if sampling.guidance_scale is None else sampling.guidance_scale,
        "device": f"{config.device}, {str(config.dtype).removeprefix('torch.')}",
        "strengths tried": ", ".join(f"{strength:g}" for strength in config.strengths or ()) or "none but 0 and 1",
        "clips": "all held out" if config.max_clips is None else f"at most {config.max_clips}",
        "table of clips": config.clips_tsv,
        "features": config.features_dir,
    }


def _prompt_settings(inputs: EvaluationInputs) -> dict[str, object]:
    """The generic prompts, or why there are none."""
    prompts = inputs.prompts
    return {"generic prompts": inputs.no_prompts_reason if prompts is None else "; ".join(prompts.captions)}


def describe_adapter(stack: AdapterStack, index: int) -> list[tuple[str, Mapping[str, object]]]:
    """Titled settings of one of the adapters and of its training."""
    adapter, number = stack.adapters[index], f" {index + 1}" if len(stack.adapters) > 1 else ""
    training = f"Training of adapter{number}" if number else "Its training"
    title = f"Adapter{number}" if number else "The adapter"
    return [(title, _adapter_settings(adapter)), (training, flatten(dict(adapter.file.config)))]


def _adapter_settings(stacked: StackedAdapter) -> dict[str, object]:
    adapter = stacked.file
    targets, training_data = adapter.targets, adapter.data.get("train")
    remaining = f" and {len(targets) - MAX_TARGETS} more" if len(targets) > MAX_TARGETS else ""
    trained_on = "not in the file"
    if training_data:
        trained_on = f"{training_data['clips']} clips of {len(training_data['videos'])} videos"
    return {
        "file": stacked.path,
        "strength": stacked.strength.plain(),
        "base model": adapter.base_model,
        "base's SHA-256": adapter.base_sha256,
        "step": adapter.step,
        "rank": adapter.lora.rank,
        "alpha": adapter.lora.alpha,
        "dropout": adapter.lora.dropout,
        "adapted layers": ", ".join(targets[:MAX_TARGETS]) + remaining,
        "trained on": trained_on,
        **({"trained on from": _describe_lineage(adapter)} if adapter.lineage else {}),
    }


def _describe_lineage(adapter: AdapterFile) -> str:
    """The adapters that this one was trained on from, newest first."""
    return "; ".join(
        f"{ancestor['exp_id']} {ancestor['file']}, step {ancestor['step']}, SHA-256 {ancestor['sha256'][:12]}..., "
        f"{len(ancestor['train'].get('videos', []))} videos"
        for ancestor in adapter.lineage
    )


def collect_versions() -> dict[str, object]:
    """Versions of Python and the main packages, and the kind of machine."""
    versions: dict[str, object] = {"python": platform.python_version(), "machine": platform.platform(terse=True)}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions
