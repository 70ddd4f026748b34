"""Provenance of a report on all folds: how each was trained, and the adapter of all videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmaudio.data.clip_table import left_out_path, read_clips, read_left_out
from mmaudio.data.feature_store import read_left_out_videos
from mmaudio.data.folds import FoldPlan, fold_folder
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.results import Results
from mmaudio.lora.checkpoint import AdapterFile
from mmaudio.lora.stack import read_stack
from mmaudio.model.spec import model_spec
from mmaudio.report.commands import build_commands
from mmaudio.report.provenance import Provenance, TrainedFold, collect_versions, describe_adapter, evaluation_settings
from mmaudio.report.sections import read_history


def collect_fold_provenance(
    config: EvaluationConfig, root: Path, plan: FoldPlan, adapters: Sequence[AdapterFile], held_out: Results
) -> Provenance:
    """Read the provenance from the files of the experiment in the folder `root`; `adapters` are the folds'."""
    stack = read_stack(config.adapters)
    spec = model_spec(config.model or stack.base_model or adapters[0].base_model)
    recipe = replace(adapters[0], config={**adapters[0].config, "folds": len(plan)})
    left_out = read_left_out(left_out_path(config.clips_tsv))
    return Provenance(
        model=spec.name,
        licence=spec.licence,
        history=read_history(root / "metrics.jsonl"),
        step=stack.adapters[0].file.step,
        clips=read_clips(config.clips_tsv),
        left_out=left_out + read_left_out_videos(config.clips_tsv, config.features_dir),
        settings=[
            ("This evaluation", {"folds": len(plan), **evaluation_settings(config, spec)}),
            *describe_adapter(stack, 0),
            ("Training of the folds", _describe_recipe_settings(recipe)),
            ("Versions", collect_versions()),
        ],
        commands=build_commands(config, spec, recipe, held_out.recommended, experiment=root),
        no_general_reason="",
        general_description="",
        folds=[
            TrainedFold(videos, adapter.step or 0, read_history(fold_folder(root, number) / "metrics.jsonl"))
            for number, videos, adapter in zip(plan.numbers, plan.videos, adapters, strict=True)
        ],
    )


def _describe_recipe_settings(recipe: AdapterFile) -> dict[str, object]:
    """The settings that say when a fold's training ends; the others are those of the adapter."""
    names = ("max_steps", "eval_every", "early_stopping", "validation", "folds")
    return {name: recipe.config[name] for name in names if name in recipe.config}


def describe_recipe(plan: FoldPlan, step: int | None) -> str:
    """What a verdict of folds is about, in a sentence or two."""
    videos = sum(map(len, plan.videos))
    steps = "" if step is None else f", for {step} steps"
    return (
        f"The verdict is of the recipe, over {len(plan)} folds: each of {videos} videos was judged with an adapter "
        f"that was trained without it. The adapter that you get is trained on all {videos}{steps}, so that no video is "
        "left to judge it by itself."
    )
