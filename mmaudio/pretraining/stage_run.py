"""Settings that every training stage takes, and what all of them do: seeded weights, and the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from mmaudio.pretraining.objective import CPU, Objective
from mmaudio.pretraining.recipe import Recipe
from mmaudio.pretraining.training_loop import Log, train

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class StageRun:
    """One stage's result file, seed, recipe, log and device."""

    path: Path
    """The trained state is saved here."""
    seed: int
    recipe: Recipe
    log: Log
    device: torch.device = CPU

    def build_seeded(self, build: Callable[[], M]) -> M:
        """The module that `build` initialises from the seed, on the CPU; torch's default generator is not changed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build()

    def train(self, module: nn.Module, objective: Objective) -> None:
        """Train `module`, or load its state where the file exists."""
        train(module, objective, self.recipe, self.path, self.seed, self.log)
