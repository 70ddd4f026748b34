"""The loss on held-out clips, at fixed times and fixed noise: two evaluations differ by the weights alone.

K clips, J time levels, N latent tokens, C latent channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from mmaudio.config import TrainConfig
from mmaudio.finetune.dataset import Material
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import Draws, TrainState
from mmaudio.finetune.step import losses
from mmaudio.finetune.torch_compile import uncompiled

FORWARD_BATCHES = 4
"""Training batches that go through the network at once where nothing is kept for a backward pass."""


@dataclass(frozen=True)
class HeldOut:
    """Validation clips with everything random drawn once for all evaluations."""

    clips: Material
    ids: list[str]
    draws: Draws
    """Of K * J samples, clip by clip; the same clip draws the same in every run."""
    levels: int


def time_grid(levels: int) -> Tensor:
    """Times (J,) that stand for equal shares of the logit-normal distribution that training draws from."""
    shares = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    normal: Tensor = torch.special.ndtri(shares)
    return normal.sigmoid().float()


def held_out(clips: Material, ids: list[str], levels: int) -> HeldOut:
    """Draw the noise of every clip from its id, the same at all its levels."""
    tokens, channels = clips.mean.shape[1:]
    pairs = []
    for name in ids:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        pairs.append(torch.randn(2, tokens, channels, generator=torch.Generator().manual_seed(seed)))
    eps, noise = torch.stack(pairs, 1).repeat_interleave(levels, dim=1)
    kept = torch.zeros(len(ids) * levels, dtype=torch.bool)
    index = torch.arange(len(ids)).repeat_interleave(levels)
    return HeldOut(clips, ids, Draws(index, eps, noise, time_grid(levels).repeat(len(ids)), kept, kept, 0), levels)


@torch.no_grad()
def validate(state: TrainState, held: HeldOut, config: TrainConfig, team: Team, average: bool = False) -> Tensor:
    """Losses (K, J) on the CPU, shared among the processes; of the running average where that is asked for."""
    device = held.clips.mean.device
    count, dtype = len(held.draws.t), compute_dtype(device, config.amp)
    found = torch.zeros(count, device=device)
    state.model.eval()
    size = FORWARD_BATCHES * config.batch_size
    with state.averaged(average), uncompiled(config):
        for number, start in enumerate(range(0, count, size)):
            if number % team.size == team.rank:
                part = slice(start, start + size)
                found[part] = losses(state.network, held.clips, held.draws.rows(part).to(device), dtype)
    team.sum([found])
    return found.view(-1, held.levels).cpu()


def by_clip(losses: Tensor) -> list[float]:
    """Losses (K, J) as each clip's mean over its times."""
    means: list[float] = losses.double().mean(1).tolist()
    return means
