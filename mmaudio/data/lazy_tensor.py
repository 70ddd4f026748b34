"""A tensor of many clips that stays where it is stored: rows are read when they are asked for.

K clips, B rows asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Column:
    """One tensor (K, ...) in several parts, memory-mapped files as a rule; `column[index]` is its rows, float32."""

    parts: Sequence[Tensor]
    """Each (clips of one file, ...), all of the same shape but for the first number."""
    places: Tensor
    """(K, 2), int64: the part of every clip, and its row there."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the rows go."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> torch.Size:
        """As the shape of a tensor: (K, ...)."""
        return torch.Size((len(self), *self.parts[0].shape[1:]))

    def __getitem__(self, index: Tensor) -> Tensor:
        """The rows number `index` (B,), int64: (B, ...). Nothing else is read."""
        places = self.places[index.to(self.places.device)].tolist()
        rows = torch.stack([self.parts[part][row] for part, row in places])
        return rows.to(self.device, torch.float32)

    def to(self, device: torch.device) -> Column:
        """The same with rows that go to `device`."""
        return replace(self, device=device)

    def whole(self) -> Tensor:
        """All of it, (K, ...); the stored tensor itself where that is all there is."""
        only = self.parts[0]
        if len(self.parts) == 1 and only.dtype == torch.float32 and len(only) == len(self):
            in_order = torch.equal(self.places[:, 1], torch.arange(len(self)))
            if in_order:
                return only.to(self.device)
        return self[torch.arange(len(self))]
