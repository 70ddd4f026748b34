"""Optimizers and the learning rate of every step.

LoRA+ (arXiv 2402.12354): the B matrices, which start at zero, learn faster than the A matrices. Parameters of a single
dimension (biases, norms) are never decayed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmaudio.config import TrainConfig
from mmaudio.errors import ConfigError

BETAS = (0.9, 0.95)
FINAL_RATE = 0.03
"""Where cosine and linear schedules end, as a share of the learning rate."""
FACTOR = "factor"
"""Key of a parameter group: its share of the step's learning rate."""
EXTRAS = {"adamw8bit": ("bitsandbytes.optim", "AdamW8bit"), "prodigy": ("prodigyopt", "Prodigy")}
"""Module and class of the optimizers that do not come with torch."""


def build_optimizer(trained: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` for the parameters by name; ConfigError where its package is not installed."""
    groups = parameter_groups(trained, config)
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": BETAS}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=True)
    module, name = EXTRAS[config.optimizer]
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(
            f"optimizer={config.optimizer} needs {module.split('.')[0]}, which is not installed: "
            "pip install 'mmaudio-lora[optimizers]', or take optimizer=adamw"
        ) from error
    if config.optimizer == "prodigy":  # as its authors advise for warm-up and falling schedules
        settings |= {"safeguard_warmup": True, "use_bias_correction": True}
    made: torch.optim.Optimizer = kind(groups, **settings)
    return made


def parameter_groups(trained: Mapping[str, nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """The parameters by their share of the learning rate and their weight decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in trained.items():
        factor = config.lora_plus_ratio if ".lora_B." in name else 1.0
        decay = config.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(weight)
    return [{"params": found, "weight_decay": decay, FACTOR: factor} for (factor, decay), found in groups.items()]


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of optimizer step number `step` (from 0): linear warm-up, then the schedule over what is left."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = min(1.0, max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    falling = {"cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1.0 - done, "constant": 1.0}[config.schedule]
    return config.learning_rate * warm * (FINAL_RATE + (1 - FINAL_RATE) * falling)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[FACTOR]
