"""What the models give on every clip, one model after the other in the same network: losses and latents.

N latent tokens, C latent channels.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmaudio.data.feature_store import FeatureSet
from mmaudio.evaluation.config import Request
from mmaudio.evaluation.general_domain import spread
from mmaudio.evaluation.inference import sample_latents, velocity_losses
from mmaudio.evaluation.measurement import MODELS, Material, Tried
from mmaudio.evaluation.strength_sweep import MOST_CLIPS, TRAINED
from mmaudio.generation.sampler import Sampler
from mmaudio.lora.adapter import merge, set_strength
from mmaudio.lora.checkpoint import AdapterFile, attach
from mmaudio.metrics.registry import ADAPTED, chosen_metrics


def run_models(
    sampler: Sampler,
    adapter: AdapterFile,
    base_sha256: str,
    sets: dict[str, Material],
    request: Request,
    kept: Path,
) -> None:
    """Losses and latents of the base, then of the adapted model, whose adapter is merged into the same network.

    Before the merge the other strengths are tried. What is done is kept in the folder `kept`, and read from there by a
    run that goes on.
    """
    for model in MODELS:
        if model == ADAPTED:
            adapted = attach(sampler.network, adapter, sampler.spec.name, base_sha256)
            try_strengths(sampler, adapted, sets["held-out"], request, kept)
            sampler.network = merge(adapted).eval().requires_grad_(False)
        for name, material in sets.items():
            file, what = kept / f"{model}-{name}.safetensors", f"{model} model, {name} clips"
            material.losses[model], material.latents[model] = run_model(sampler, material.features, request, file, what)


def try_strengths(sampler: Sampler, adapted: nn.Module, material: Material, request: Request, kept: Path) -> None:
    """Losses and latents at each strength that is asked for, on a few clips; the adapter is as trained afterwards."""
    rows = spread(material.features.videos, MOST_CLIPS) if request.strengths else []
    for strength in request.strengths:
        set_strength(adapted, strength)
        file, what = kept / f"{ADAPTED}-{strength:g}.safetensors", f"adapter at {strength:g}, {len(rows)} clips"
        losses, latents = run_model(sampler, material.features.subset(rows), request, file, what)
        made = Tried(dict(zip(rows, latents, strict=True)), dict(zip(rows, losses, strict=True)))
        material.strengths[strength] = made
    if request.strengths:
        set_strength(adapted, TRAINED)


def run_model(
    sampler: Sampler, features: FeatureSet, request: Request, file: Path, what: str
) -> tuple[list[float], Tensor]:
    """Losses and latents of the sampler's network on some clips, from `file` where they are kept there.

    Losses that were not asked for are NaN.
    """
    if not file.is_file():
        sampler.network.set_duration(features.seconds)
        losses = [math.nan] * len(features)
        if "velocity_loss" in chosen_metrics(request.metrics):
            losses = velocity_losses(sampler, features, request.draws, f"{what}: loss")
        latents = sample_latents(sampler, features, request.draws, f"{what}: sounds")
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({"losses": torch.tensor(losses), "latents": latents.contiguous()}, part)
        part.replace(file)
    done = load_file(file)
    return done["losses"].tolist(), done["latents"]
