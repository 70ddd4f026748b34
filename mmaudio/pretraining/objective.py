"""Training objectives in two halves: random numbers from the CPU, and a loss on the device that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CPU = torch.device("cpu")
Draws = tuple[Tensor, ...]
"""Random numbers of one micro-batch."""


@dataclass(frozen=True)
class Objective:
    """A loss and the random numbers that it takes; called with a generator it is the loss on a CPU."""

    draw: Callable[[torch.Generator], Draws]
    """Draws the random numbers of a micro-batch on the CPU, so that they are the same for every device."""
    loss: Callable[..., Tensor]
    """The loss of `draw`'s tensors on the module's device; the same operations in every step."""

    def __call__(self, generator: torch.Generator) -> Tensor:
        """The loss of a micro-batch, where the module is on the CPU."""
        return self.loss(*self.draw(generator))


def step_generator(seed: int, step: int, micro_batch: int = 0) -> torch.Generator:
    """The random number generator of one micro-batch of a step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step + micro_batch * 500_000_009)
