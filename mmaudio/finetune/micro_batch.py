"""Micro-batches: how many of a step's clips go through the network together, by the memory that is free."""

from __future__ import annotations

import torch

from mmaudio.config import TrainConfig
from mmaudio.finetune.dataset import ClipDataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.memory_estimate import measure_activation_bytes
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.torch_compile import eager_mode
from mmaudio.utils.memory import free_memory

MEMORY_FRACTION = 0.5
"""Share of the free memory that is planned for: what passes compute in between and CUDA graphs take the rest."""


def choose_micro_batch(state: TrainState, dataset: ClipDataset, config: TrainConfig, distributed: Distributed) -> int:
    """Clips that go through the network together on every process, 0 for `batch_size`; a resumed run keeps its size."""
    if not merges_batches(config, distributed.device):
        return min(state.micro_batch, config.batch_size)
    size = config.effective_batch_size // distributed.world_size
    if state.micro_batch:
        return min(state.micro_batch, size)
    with eager_mode(config):  # compiling for one clip and for two would be in vain
        one_clip, two_clips = (measure_activation_bytes(state, dataset, config, count) for count in (1, 2))
    trainable_bytes = 3 * sum(parameter.nbytes for parameter in state.trainable_parameters().values())
    available = MEMORY_FRACTION * free_memory(distributed.device) - trainable_bytes
    while size > config.batch_size:
        if not distributed.all_reduce_any(one_clip + (two_clips - one_clip) * (size - 1) > available):
            return size
        size = max(config.batch_size, -(-size // 2))
    return size


def merges_batches(config: TrainConfig, device: torch.device) -> bool:
    """True where micro-batches may be larger than `batch_size`: on a GPU where it has its default, or as it is set."""
    if config.merge_batches is None:
        return device.type == "cuda" and config.batch_size == TrainConfig.batch_size
    return config.merge_batches
