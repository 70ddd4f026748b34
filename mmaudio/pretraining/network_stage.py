"""Stage 6: the flow-matching network, on the cached features.

Prompts matter only where the video does not already determine the audio: besides complete samples there are some with
the text alone, with the video alone and with neither.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mmaudio.model.flow_matching import logit_normal_times, sample_posterior, velocity_loss
from mmaudio.model.networks import MMAudio, build_network
from mmaudio.pretraining.feature_stage import CachedFeatures
from mmaudio.pretraining.objective import Objective
from mmaudio.pretraining.recipe import Recipe
from mmaudio.pretraining.stage_run import StageRun

RECIPE = Recipe(
    steps=5000,
    learning_rate=2e-3,
    muon_learning_rate=8e-3,
    warmup_steps=100,
    ema_decay=0.996,
    micro_batches=1,
    compile=True,
)
BATCH_SIZE = 16
TEXT_ONLY, VIDEO_ONLY, UNCONDITIONAL = 0.14, 0.14, 0.06
"""Fractions of the samples whose video, text or both are dropped."""


def set_constants(network: MMAudio, features: CachedFeatures) -> None:
    """Set the latents' normalisation, posterior variance included, and the empty caption's features for no text."""
    mean = features.mean.mean((0, 1))
    variance = (features.mean - mean).square().mean((0, 1)) + features.std.square().mean((0, 1))
    network.latent_mean.copy_(mean[None, None])
    network.latent_std.copy_(variance.sqrt()[None, None])
    network.empty_string_feat.data.copy_(features.text[0])
    network.empty_string_feat.requires_grad_(False)


def draw_batch(features: CachedFeatures, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The random numbers of a batch, the further arguments of `build_batch`."""
    rows = torch.randint(len(features.mean), (BATCH_SIZE,), generator=generator)
    shape = (BATCH_SIZE, *features.mean.shape[1:])
    eps, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    t = logit_normal_times(BATCH_SIZE, generator)
    return rows, eps, noise, t, torch.rand(BATCH_SIZE, 1, 1, generator=generator)


def build_batch(
    network: MMAudio,
    features: CachedFeatures,
    rows: Tensor,  # (B,)
    eps: Tensor,  # (B, N, C), standard normal: the posterior's sample
    noise: Tensor,  # (B, N, C)
    t: Tensor,  # (B,)
    uniform: Tensor,  # (B, 1, 1) in [0, 1), decides which conditions are dropped
) -> tuple[Tensor, ...]:
    """The further arguments of `network_loss`."""
    latent = network.normalize(sample_posterior(features.mean[rows], features.std[rows], eps))
    no_video = uniform < TEXT_ONLY + UNCONDITIONAL
    no_text = (uniform >= TEXT_ONLY) & (uniform < TEXT_ONLY + UNCONDITIONAL + VIDEO_ONLY)
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
        torch.where(no_video, network.empty_clip(BATCH_SIZE), clip),
        torch.where(no_video, network.empty_sync(BATCH_SIZE), sync),
        torch.where(no_text, network.empty_text(BATCH_SIZE), text),
    )
    return velocity_loss(network, latent, conditions, t, noise).mean()


def train_network(features: CachedFeatures, run: StageRun) -> MMAudio:
    """The trained network."""
    network = build_network("tiny_16k")
    network.init_weights(torch.Generator().manual_seed(run.seed))
    set_constants(network, features)
    network.to(run.device)
    device_features = features.to(run.device)
    loss = run.recipe.compile_loss(functools.partial(network_loss, network), run.device)
    objective = Objective(
        functools.partial(draw_batch, features),
        lambda *draws: loss(*build_batch(network, device_features, *draws)),
    )
    run.train(network, objective)
    return network.eval()
