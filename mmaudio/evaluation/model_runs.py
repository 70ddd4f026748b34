"""Losses and latents of both models on every clip, one model after the other in the same network.

Each result goes to a file at once, so that an interrupted evaluation resumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmaudio.data.feature_set import FeatureSet
from mmaudio.evaluation.base_outputs import keep, kept_file, read_kept
from mmaudio.evaluation.clip_set import MODELS, ClipSet, StrengthOutputs
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.general_domain import spread_over_videos
from mmaudio.evaluation.generic_prompts import sample_prompts
from mmaudio.evaluation.inference import sample_latents, velocity_losses
from mmaudio.evaluation.inputs import EvaluationInputs
from mmaudio.evaluation.output_files import read_outputs, write_outputs
from mmaudio.evaluation.strength_sweep import MAX_CLIPS
from mmaudio.generation.sampler import Sampler
from mmaudio.lora.adapter import merge, merged_weights, set_strength
from mmaudio.lora.strength import AS_TRAINED
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.metrics.registry import select_metrics


def run_models(sampler: Sampler, inputs: EvaluationInputs, clip_sets: Mapping[str, ClipSet], folder: Path) -> None:
    """Fill in losses and latents of the base model, then those of the adapted one.

    The other strengths of the adapter are tried before it is merged into the network. `folder` gets a file per result.
    """
    for model in MODELS:
        if model == ADAPTED:
            adapted = inputs.stack.attach(sampler.network, sampler.spec.name, inputs.base_sha256)
            run_strengths(sampler, adapted, clip_sets, inputs.config, folder)
            sampler.network = merge(adapted).eval().requires_grad_(False)
        for name, clips in clip_sets.items():
            file, label = folder / f"{model}-{name}.safetensors", f"{model} model, {name} clips"
            cache_file = kept_file(inputs.base_sha256, clips.features, inputs.config) if model == BASE else None
            outputs = run_model(sampler, clips.features, inputs.config, file, label, cache_file)
            clips.losses[model], clips.latents[model] = outputs
        if inputs.prompts is not None:
            sample_prompts(sampler, model, inputs.prompts, inputs.config, folder)


def run_strengths(
    sampler: Sampler, adapted: nn.Module, clip_sets: Mapping[str, ClipSet], config: EvaluationConfig, folder: Path
) -> None:
    """Fill in losses and latents at each strength of the config, on a few clips of each set; end as trained."""
    for strength in config.strengths or ():
        set_strength(adapted, strength)
        for name, clips in clip_sets.items():
            rows = spread_over_videos(clips.features.videos, MAX_CLIPS)
            file = folder / f"{ADAPTED}-{strength:g}-{name}.safetensors"
            label = f"adapter at {strength:g}, {len(rows)} {name} clips"
            with merged_weights(adapted):
                losses, latents = run_model(sampler, clips.features.subset(rows), config, file, label)
            outputs = StrengthOutputs(dict(zip(rows, latents, strict=True)), dict(zip(rows, losses, strict=True)))
            clips.strengths[strength] = outputs
    if config.strengths:
        set_strength(adapted, AS_TRAINED)


def run_model(
    sampler: Sampler,
    features: FeatureSet,
    config: EvaluationConfig,
    file: Path,
    label: str,
    cache_file: Path | None = None,
) -> tuple[list[float], Tensor]:
    """Losses and latents of the sampler's network on some clips, read from `file` where that is possible.

    Losses are NaN where they are not among the config's metrics. `label` names the progress bars; `cache_file` holds
    what an earlier evaluation left.
    """
    outputs = read_outputs(file)
    if outputs is None:
        outputs = read_kept(cache_file) if cache_file else None
        if outputs is None:
            outputs = compute_outputs(sampler, features, config, label)
            if cache_file:
                keep(cache_file, outputs)
        write_outputs(file, outputs)
    return outputs["losses"].tolist(), outputs["latents"]


def compute_outputs(sampler: Sampler, features: FeatureSet, config: EvaluationConfig, label: str) -> dict[str, Tensor]:
    """Losses and latents of the sampler's network on some clips, as they are in a file."""
    sampler.network.set_duration(features.seconds)
    losses = [math.nan] * len(features)
    if "velocity_loss" in select_metrics(config.metrics):
        losses = velocity_losses(sampler, features, config.sampling, f"{label}: loss")
    latents = sample_latents(sampler, features, config.sampling, f"{label}: sampling")
    return {"losses": torch.tensor(losses), "latents": latents}
