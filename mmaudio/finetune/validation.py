"""Validation loss on held-out clips, at fixed times and fixed noise: two evaluations differ by the weights alone.

K clips, J time levels, N latent tokens, C latent channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from mmaudio.config import TrainConfig
from mmaudio.finetune.dataset import ClipDataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.draws import Draws
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import compute_losses
from mmaudio.finetune.torch_compile import eager_mode
from mmaudio.model.flow_matching import logit_normal_quantiles
from mmaudio.utils.progress import Progress

FORWARD_BATCHES = 4
"""Validation batch size over the training batch size: without a backward pass no activations are kept."""


@dataclass(frozen=True)
class ValidationSet:
    """Validation clips with everything random drawn once for all evaluations."""

    dataset: ClipDataset
    ids: list[str]
    draws: Draws
    """Of K * J samples, clip by clip; a clip's noise is the same in every run."""
    levels: int


def build_validation_set(dataset: ClipDataset, ids: list[str], levels: int) -> ValidationSet:
    """Draw the noise of every clip from its id, the same at all its levels."""
    tokens, channels = dataset.mean.shape[1:]
    pairs = []
    for clip_id in ids:
        seed = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:7], "big")
        pairs.append(torch.randn(2, tokens, channels, generator=torch.Generator().manual_seed(seed)))
    eps, noise = torch.stack(pairs, 1).repeat_interleave(levels, dim=1)
    keep_all = torch.zeros(len(ids) * levels, dtype=torch.bool)
    index, t = torch.arange(len(ids)).repeat_interleave(levels), logit_normal_quantiles(levels).repeat(len(ids))
    return ValidationSet(dataset, ids, Draws(index, eps, noise, t, keep_all, keep_all, 0), levels)


@torch.no_grad()
def validate(
    state: TrainState, validation_set: ValidationSet, config: TrainConfig, distributed: Distributed, ema: bool = False
) -> Tensor:
    """Losses (K, J) on the CPU, of the adapter or its EMA; the processes share the work."""
    dataset, draws = validation_set.dataset, validation_set.draws
    device, micro_batch = dataset.mean.device, distributed.all_reduce_min(state.micro_batch or config.batch_size)
    batch_size = FORWARD_BATCHES * micro_batch  # of all processes the same: they share the batches
    losses = torch.zeros(len(draws), device=device)
    state.model.eval()
    starts = range(0, len(draws), batch_size)
    with state.use_ema(ema), eager_mode(config), Progress(len(starts), "validation", inner=True) as counter:
        for number, start in enumerate(counter.count(starts)):
            if number % distributed.world_size == distributed.rank:
                rows = slice(start, start + batch_size)
                losses[rows] = losses_in_memory(state, dataset, draws.select(rows).to(device), config)
    distributed.all_reduce_sum([losses])
    return losses.view(-1, validation_set.levels).cpu()


def losses_in_memory(state: TrainState, dataset: ClipDataset, draws: Draws, config: TrainConfig) -> Tensor:
    """The losses (B,) of the draws, of each half by itself where memory runs out."""
    try:
        return compute_losses(state.network, dataset, draws, compute_dtype(draws.t.device, config.amp))
    except torch.OutOfMemoryError:
        if len(draws) == 1:
            raise
    halves = list(draws.split(-(-len(draws) // 2)))
    return torch.cat([losses_in_memory(state, dataset, half, config) for half in halves])


def average_by_clip(losses: Tensor) -> list[float]:
    """Losses (K, J) as each clip's mean over its times."""
    means: list[float] = losses.double().mean(1).tolist()
    return means
