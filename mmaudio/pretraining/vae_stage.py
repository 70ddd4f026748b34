"""Stage 3: the VAE, on the mel spectrograms of the base's domain and of random synthetic audio.

B crops of a batch, C latent channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from mmaudio.features.mel import build_mel
from mmaudio.features.vae import VAE, build_vae
from mmaudio.pretraining.objective import CPU, Objective
from mmaudio.pretraining.recipe import Recipe
from mmaudio.pretraining.shards import Shard
from mmaudio.pretraining.stage_run import StageRun
from mmaudio.synthetic.random_audio import random_waveform

RECIPE = Recipe(steps=2400, learning_rate=3e-3, warmup_steps=100, ema_decay=0.995, weight_decay=0.0, micro_batches=1)
BATCH_SIZE, DOMAIN_CROPS = 24, 8
"""Crops of a batch, and how many of them are of the base's domain; the others are of random audio."""
CROP_FRAMES = 128
"""Mel frames of a crop."""
RANDOM_CLIPS = 360
"""Clips of random audio."""
NUM_SAMPLES, SAMPLE_RATE = 128_000, 16_000
KL_WEIGHT = 1e-3
LOUD_LOG_MEL = -2.2
"""Cells of a log10 mel spectrogram above this are loud."""


def compute_mels(shards: Sequence[Shard], device: torch.device = CPU) -> Tensor:
    """Log-mel spectrograms of all clips (clips, 80, 500) in float16."""
    mel = build_mel("tiny_16k").to(device)
    return torch.cat([mel(shard.audio.to(device).float()).half() for shard in shards])


def compute_random_mels(seed: int, device: torch.device) -> Tensor:
    """Log-mel spectrograms of random audio (RANDOM_CLIPS, 80, 500) in float16."""
    mel = build_mel("tiny_16k").to(device)
    waveforms = (random_waveform(seed, index, NUM_SAMPLES, SAMPLE_RATE) for index in range(RANDOM_CLIPS))
    return torch.cat([mel(waveform[None].to(device)).half() for waveform in waveforms])


def draw_crops(vae: VAE, domain: Tensor, random_mels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Rows and starts of crops of `domain` and of `random_mels`, and the posterior's noise (B, C, CROP_FRAMES / 2)."""
    draws = []
    for mels, count in ((domain, DOMAIN_CROPS), (random_mels, BATCH_SIZE - DOMAIN_CROPS)):
        draws.append(torch.randint(len(mels), (count,), generator=generator))
        draws.append(torch.randint(mels.shape[2] - CROP_FRAMES + 1, (count,), generator=generator))
    return *draws, torch.randn(BATCH_SIZE, vae.spec.latent_dim, CROP_FRAMES // 2, generator=generator)


def crop_mels(mels: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
    """CROP_FRAMES frames of each of the rows from its start on: (rows, 80, CROP_FRAMES), float32."""
    bands = torch.arange(mels.shape[1], device=mels.device)[None, :, None]
    frames = starts[:, None, None] + torch.arange(CROP_FRAMES, device=mels.device)
    return mels[rows[:, None, None], bands, frames].float()


def vae_loss(
    vae: VAE,
    domain: Tensor,  # (clips, 80, 500)
    random_mels: Tensor,  # (RANDOM_CLIPS, 80, 500)
    rows: Tensor,  # (DOMAIN_CROPS,)
    starts: Tensor,  # (DOMAIN_CROPS,)
    random_rows: Tensor,  # (B - DOMAIN_CROPS,)
    random_starts: Tensor,  # (B - DOMAIN_CROPS,)
    noise: Tensor,  # (B, C, CROP_FRAMES / 2)
) -> Tensor:
    """Weighted reconstruction error of random crops, plus the KL term; loud cells weigh up to eleven times more."""
    mel = torch.cat([crop_mels(domain, rows, starts), crop_mels(random_mels, random_rows, random_starts)])
    posterior = vae.encode(mel)
    error = (vae.decode(posterior.sample(noise)) - mel) / vae.data_std
    weight = 0.3 + 3 * torch.sigmoid(6 * (mel - LOUD_LOG_MEL))
    return (weight * (error.abs() + 0.5 * error.square())).mean() + KL_WEIGHT * posterior.kl().mean()


def train_vae(shards: Sequence[Shard], run: StageRun) -> VAE:
    """The trained VAE."""
    vae = run.build_seeded(lambda: build_vae("tiny_16k")).to(run.device)
    if run.path.exists():
        vae.load_state_dict(torch.load(run.path, map_location="cpu", weights_only=True))
        return vae.eval()
    domain, random_mels = compute_mels(shards, run.device), compute_random_mels(run.seed, run.device)
    all_mels = torch.cat([domain[:RANDOM_CLIPS], random_mels]).float()
    vae.data_mean.copy_(all_mels.mean((0, 2), keepdim=True))
    vae.data_std.copy_(all_mels.std((0, 2), keepdim=True))
    objective = Objective(
        functools.partial(draw_crops, vae, domain, random_mels), functools.partial(vae_loss, vae, domain, random_mels)
    )
    run.train(vae, objective)
    error, loud_error = reconstruction_error(vae, domain[-100:].float())
    run.log(f"vae: mel L1 of domain clips {error:.3f}, over loud cells {loud_error:.3f}")
    return vae.eval()


@torch.inference_mode()
def reconstruction_error(vae: VAE, mels: Tensor) -> tuple[float, float]:
    """Mean absolute error of decoded means, over all cells and over the loud ones."""
    error = (vae.decode(vae.encode(mels).mean) - mels).abs()
    return float(error.mean()), float(error[mels > LOUD_LOG_MEL].mean())
