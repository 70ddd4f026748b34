"""Whether the features of a run fit into a device's memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmaudio.data.feature_set import FEATURE_NAMES, AnyFeatureSet, LazyFeatureSet
from mmaudio.finetune.dataset import trains_projections
from mmaudio.model.networks import MMAudio
from mmaudio.utils.memory import free_memory

MEMORY_SHARE = 0.5
"""Of a device's free memory, what features may take: activations, gradients and the optimizer need the rest."""


@dataclass(frozen=True)
class FeatureMemory:
    """Memory that features need, and memory that is free, in bytes."""

    needed: int
    """Bytes of all clips, their conditions projected where that is done once."""
    free: int
    """Bytes that the device has left for this process."""

    @property
    def fits(self) -> bool:
        """True where MEMORY_SHARE of the free memory is enough."""
        return self.needed <= MEMORY_SHARE * self.free

    def __str__(self) -> str:
        return f"{self.needed / 1e9:.2f} GB for {self.free / 1e9:.2f} GB of free memory"


def estimate_feature_memory(
    network: MMAudio, sets: Sequence[AnyFeatureSet], device: torch.device, world_size: int = 1
) -> FeatureMemory:
    """The memory for all clips of `sets`; on a CPU, `world_size` processes share it."""
    free = free_memory(device)
    needed = sum(len(clips) * _bytes_per_clip(network, clips.to_lazy()) for clips in sets)
    return FeatureMemory(needed, free if device.type == "cuda" else free // world_size)


def _bytes_per_clip(network: MMAudio, clips: LazyFeatureSet) -> int:
    """Bytes of one clip in float32."""
    counts = {name: math.prod(clips.lazy_tensor(name).shape[1:]) for name in FEATURE_NAMES}
    if trains_projections(network):
        return 4 * sum(counts.values())
    lengths, spec = network.lengths, network.spec
    tokens = lengths.clip_tokens + lengths.sync_tokens + spec.text_tokens + 2  # 2: pooled CLIP and text, a row each
    return 4 * (counts["mean"] + counts["std"] + tokens * spec.width)
