"""Hyperparameters of one training stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Recipe:
    """Optimizers, learning-rate schedule, EMA and execution of one stage."""

    steps: int
    learning_rate: float
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = 0.0
    """Peak learning rate of Muon (arXiv 2502.16982), which takes over the matrices inside transformer blocks and needs
    fewer steps than AdamW there; 0: AdamW takes all."""
    warmup_steps: int = 100
    final_learning_rate: float = 0.03
    """Learning rate at the end, as a fraction of the peak."""
    weight_decay: float = 1e-4
    ema_decay: float = 0.0
    """Decay of the EMA weights, which are the result; 0: the last weights are."""
    micro_batches: int = 2
    """Micro-batches of a step. On a CPU a thread computes each: on few cores and small tensors that is nearly twice as
    fast as threads inside the operations. A compiled loss is fastest in one micro-batch."""
    bf16: bool = True
    """Autocast to bfloat16."""
    compile: bool = False
    """Compile the loss on a CPU: nearly twice as fast there; needs a C++ compiler."""
    cuda_graph: bool = True
    """On a GPU: capture a step once and replay it."""
    save_every: int = 250
    log_every: int = 50

    def learning_rate_factor(self, step: int) -> float:
        """Fraction of the peak learning rate at step 0, 1, ...: linear warm-up, then a cosine."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_learning_rate + (1 - self.final_learning_rate) * cosine

    def ema_decay_at(self, step: int) -> float:
        """Decay of the EMA at step 0, 1, ...: smaller in the first steps, whose weights are far from the result."""
        return self.ema_decay * min(1.0, (step + 1) / (step + 10))

    def compile_loss(self, loss: LossFunction, device: torch.device) -> LossFunction:
        """The loss compiled where the recipe asks for it, on a CPU only: a GPU replays a CUDA graph instead."""
        return torch.compile(loss, dynamic=False) if self.compile and device.type == "cpu" else loss
