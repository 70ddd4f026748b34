"""Stage 6: the flow-matching network, on the cached features.

Prompts matter only where the video does not already tell everything: besides complete samples there are some with the
text alone, with the video alone and with nothing, each kind drawn on its own.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.model.flow_matching import logit_normal_times, sample_posterior, velocity_loss
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.pretraining.feature_stage import Features
from mmaudio.pretraining.gpu_steps import CPU, Objective
from mmaudio.pretraining.training_loop import Log, Recipe, train

RECIPE = Recipe(steps=5000, learning_rate=2e-3, muon=8e-3, warmup=100, ema=0.996, parts=1, compile=True)
BATCH = 16
TEXT_ONLY, VIDEO_ONLY, NOTHING = 0.14, 0.14, 0.06
"""Shares of the samples whose video, text or both are dropped."""


def prepare(network: MMAudio, features: Features) -> None:
    """Set the latents' normalisation, posterior variance included, and let no text be the empty caption."""
    mean = features.mean.mean((0, 1))
    variance = (features.mean - mean).square().mean((0, 1)) + features.std.square().mean((0, 1))
    network.latent_mean.copy_(mean[None, None])
    network.latent_std.copy_(variance.sqrt()[None, None])
    network.empty_string_feat.data.copy_(features.text[0])
    network.empty_string_feat.requires_grad_(False)


def draw(network: MMAudio, features: Features, generator: torch.Generator) -> tuple[Tensor, ...]:
    """What is random in a batch, the further arguments of `batch_of`."""
    rows = torch.randint(len(features.mean), (BATCH,), generator=generator)
    shape = (BATCH, *features.mean.shape[1:])
    sample, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    t = logit_normal_times(BATCH, generator)
    return rows, sample, noise, t, torch.rand(BATCH, 1, 1, generator=generator)


def batch_of(
    network: MMAudio,
    features: Features,
    rows: Tensor,  # (B,)
    sample: Tensor,  # (B, N, C), standard normal
    noise: Tensor,  # (B, N, C)
    t: Tensor,  # (B,)
    share: Tensor,  # (B, 1, 1) in [0, 1), which conditions are dropped
) -> tuple[Tensor, ...]:
    """The further arguments of `network_loss`."""
    latent = network.normalize(sample_posterior(features.mean[rows], features.std[rows], sample))
    no_video = share < TEXT_ONLY + NOTHING
    no_text = (share >= TEXT_ONLY) & (share < TEXT_ONLY + NOTHING + VIDEO_ONLY)
    text = features.text[features.caption[rows]]
    return latent, noise, t, features.clip[rows], features.sync[rows], text, no_video, no_text


def network_loss(
    network: MMAudio,
    latent: Tensor,  # (B, N, C), normalised
    noise: Tensor,  # (B, N, C)
    t: Tensor,  # (B,)
    clip: Tensor,  # (B, V, clip_dim)
    sync: Tensor,  # (B, S, sync_dim)
    text: Tensor,  # (B, L, text_dim)
    no_video: Tensor,  # (B, 1, 1)
    no_text: Tensor,  # (B, 1, 1)
) -> Tensor:
    """Mean velocity loss of a batch, some of whose conditions are dropped."""
    conditions = network.preprocess_conditions(
        torch.where(no_video, network.empty_clip(BATCH), clip),
        torch.where(no_video, network.empty_sync(BATCH), sync),
        torch.where(no_text, network.empty_text(BATCH), text),
    )
    return velocity_loss(network, latent, conditions, t, noise).mean()


def train_network(
    features: Features,
    path: Path,
    seed: int,
    log: Log,
    recipe: Recipe = RECIPE,
    device: torch.device = CPU,
) -> MMAudio:
    """The trained network; its state lies at `path` when done."""
    network = build_network("tiny_16k")
    network.initialise(torch.Generator().manual_seed(seed))
    prepare(network, features)
    network.to(device)
    there = features.to(device)
    loss = recipe.compiled(functools.partial(network_loss, network), device)
    objective = Objective(
        functools.partial(draw, network, features), lambda *drawn: loss(*batch_of(network, there, *drawn))
    )
    train(network, objective, recipe, path, seed, log)
    return network.eval()
