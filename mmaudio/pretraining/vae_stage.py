"""Stage 3: the VAE, on the mel spectrograms of the base's domain and of many other synthetic sounds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmaudio.features.mel import build_mel
from mmaudio.features.vae import VAE, build_vae
from mmaudio.pretraining.gpu_steps import CPU, Objective
from mmaudio.pretraining.shards import Shard
from mmaudio.pretraining.training_loop import Log, Recipe, train
from mmaudio.synthetic import audio_synthesis as sounds
from mmaudio.synthetic.domains import Timbre

RECIPE = Recipe(steps=2400, learning_rate=3e-3, warmup=100, ema=0.995, weight_decay=0.0, parts=1)
BATCH, DOMAIN = 24, 8
"""Crops of a batch, and how many of them are of the base's domain; the others are of broad synthesis."""
CROP = 128
"""Mel frames."""
BROAD = 360
"""Clips of broad synthesis."""
SAMPLES, RATE = 128_000, 16_000
KL_WEIGHT = 1e-3


def broad_timbre(generator: np.random.Generator) -> Timbre:
    """Any timbre: tones, bands of noise of any width, and both."""
    frequency = float(np.exp(generator.uniform(np.log(120), np.log(7000))))
    count = int(generator.integers(1, 6))
    ratios = np.arange(1, count + 1) if generator.random() < 0.5 else np.sort(generator.uniform(1, 6, count))
    style = generator.integers(3)
    return Timbre(
        frequency,
        float(np.exp(generator.uniform(np.log(0.02), np.log(0.6)))),
        tuple((float(r), float(a)) for r, a in zip(ratios, generator.uniform(0.1, 1, count), strict=True))
        if style != 1
        else (),
        noise=float(generator.uniform(0.2, 1)) if style != 0 else 0.0,
        octaves=float(np.exp(generator.uniform(np.log(0.15), np.log(4)))),
        sweep=float(generator.uniform(-1, 1)) if generator.random() < 0.3 else 0.0,
    )


def broad_sound(seed: int, index: int) -> Tensor:
    """Eight seconds (128000,) of struck sounds and hums of any timbre, peak 0.95."""
    generator = np.random.default_rng((seed, index))
    floor = float(np.exp(generator.uniform(np.log(3e-4), np.log(0.02))))
    waveform = floor * generator.standard_normal(SAMPLES)
    for _ in range(int(generator.integers(4, 20))):
        strike = sounds.struck(broad_timbre(generator), RATE, generator) * generator.uniform(0.05, 1)
        start = int(generator.integers(SAMPLES))
        waveform[start : start + len(strike)] += strike[: SAMPLES - start]
    if generator.random() < 0.4:
        times = np.arange(SAMPLES) / RATE
        swing = 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(0.1, 6) * times)
        waveform += sounds.hum(broad_timbre(generator), generator.uniform(0.05, 0.5) * swing, RATE, generator)
    return torch.from_numpy(waveform * (0.95 / np.abs(waveform).max())).float()


def mels_of(shards: Sequence[Shard], device: torch.device = CPU) -> Tensor:
    """Log-mel spectrograms of all clips (clips, 80, 500) in float16."""
    mel = build_mel("tiny_16k").to(device)
    return torch.cat([mel(shard.audio.to(device).float()).half() for shard in shards])


def vae_draws(vae: VAE, domain: Tensor, broad: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Rows and starts of the crops of `domain` and of `broad`, and the posterior's noise (B, C, CROP / 2)."""
    drawn = []
    for mels, count in ((domain, DOMAIN), (broad, BATCH - DOMAIN)):
        drawn.append(torch.randint(len(mels), (count,), generator=generator))
        drawn.append(torch.randint(mels.shape[2] - CROP + 1, (count,), generator=generator))
    return *drawn, torch.randn(BATCH, vae.spec.latent_dim, CROP // 2, generator=generator)


def crops(mels: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
    """CROP frames of each of the rows from its start on: (rows, 80, CROP), float32."""
    bands = torch.arange(mels.shape[1], device=mels.device)[None, :, None]
    frames = starts[:, None, None] + torch.arange(CROP, device=mels.device)
    return mels[rows[:, None, None], bands, frames].float()


def vae_loss(
    vae: VAE,
    domain: Tensor,  # (clips, 80, 500)
    broad: Tensor,  # (BROAD, 80, 500)
    rows: Tensor,  # (DOMAIN,)
    starts: Tensor,  # (DOMAIN,)
    broad_rows: Tensor,  # (BATCH - DOMAIN,)
    broad_starts: Tensor,  # (BATCH - DOMAIN,)
    noise: Tensor,  # (B, C, CROP / 2)
) -> Tensor:
    """Weighted reconstruction error of random crops, plus the divergence; loud cells weigh up to eleven times more."""
    mel = torch.cat([crops(domain, rows, starts), crops(broad, broad_rows, broad_starts)])
    posterior = vae.encode(mel)
    error = (vae.decode(posterior.sample(noise)) - mel) / vae.data_std
    weight = 0.3 + 3 * torch.sigmoid(6 * (mel + 2.2))
    return (weight * (error.abs() + 0.5 * error.square())).mean() + KL_WEIGHT * posterior.kl().mean()


def train_vae(
    shards: Sequence[Shard],
    path: Path,
    seed: int,
    log: Log,
    recipe: Recipe = RECIPE,
    device: torch.device = CPU,
) -> VAE:
    """The trained VAE; its state lies at `path` when done."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = build_vae("tiny_16k")
    vae.to(device)
    if not path.exists():
        mel = build_mel("tiny_16k").to(device)
        domain = mels_of(shards, device)
        broad = torch.cat([mel(broad_sound(seed, index)[None].to(device)).half() for index in range(BROAD)])
        both = torch.cat([domain[:BROAD], broad]).float()
        vae.data_mean.copy_(both.mean((0, 2), keepdim=True))
        vae.data_std.copy_(both.std((0, 2), keepdim=True))
        objective = Objective(
            functools.partial(vae_draws, vae, domain, broad), functools.partial(vae_loss, vae, domain, broad)
        )
        train(vae, objective, recipe, path, seed, log)
        error, loud = reconstruction(vae, domain[-100:].float())
        log(f"vae: mel L1 of domain clips {error:.3f}, over loud cells {loud:.3f}")
    else:
        vae.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return vae.eval()


@torch.inference_mode()
def reconstruction(vae: VAE, mels: Tensor) -> tuple[float, float]:
    """Mean absolute error of decoded means, over all cells and over the loud ones (log10 mel above -2.2)."""
    error = (vae.decode(vae.encode(mels).mean) - mels).abs()
    return float(error.mean()), float(error[mels > -2.2].mean())
