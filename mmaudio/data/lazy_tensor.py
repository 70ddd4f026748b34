"""A tensor of many clips that stays in its files: rows are read on demand.

K clips, B requested rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LazyTensor:
    """One tensor (K, ...) in several shards, memory-mapped files as a rule; `tensor[index]` reads rows, float32."""

    shards: Sequence[Tensor]
    """Each (clips of one file, ...), all of the same shape but for the first dimension."""
    locations: Tensor
    """(K, 2), int64: the shard of every clip, and its row there."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of the rows that are read."""

    def __len__(self) -> int:
        return len(self.locations)

    @property
    def shape(self) -> torch.Size:
        """As the shape of a tensor: (K, ...)."""
        return torch.Size((len(self), *self.shards[0].shape[1:]))

    def __getitem__(self, index: Tensor) -> Tensor:
        """The rows number `index` (B,), int64: (B, ...). Nothing else is read."""
        locations = self.locations[index.to(self.locations.device)].tolist()
        rows = torch.stack([self.shards[shard][row] for shard, row in locations])
        return rows.to(self.device, torch.float32)

    def to(self, device: torch.device) -> LazyTensor:
        """The same with rows that go to `device`."""
        return replace(self, device=device)

    def load(self) -> Tensor:
        """All rows, (K, ...); a single shard that is used whole and in order is returned as it is."""
        first = self.shards[0]
        if len(self.shards) == 1 and first.dtype == torch.float32 and len(first) == len(self):
            in_order = torch.equal(self.locations[:, 1], torch.arange(len(self)))
            if in_order:
                return first.to(self.device)
        return self[torch.arange(len(self))]
