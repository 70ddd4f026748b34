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
FINAL_LR_FACTOR = 0.03
"""Where cosine and linear schedules end, as a factor on the learning rate."""
LR_FACTOR = "factor"
"""Key of a parameter group: the factor on the step's learning rate."""
OPTIONAL_OPTIMIZERS = {"adamw8bit": ("bitsandbytes.optim", "AdamW8bit"), "prodigy": ("prodigyopt", "Prodigy")}
"""Module and class of the optimizers that do not come with torch."""


def build_optimizer(parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` for the parameters by name; ConfigError where its package is not installed."""
    groups = build_parameter_groups(parameters, config)
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": BETAS}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=True)
    module, class_name = OPTIONAL_OPTIMIZERS[config.optimizer]
    try:
        optimizer_class = getattr(importlib.import_module(module), class_name)
    except ImportError as error:
        raise ConfigError(
            f"optimizer={config.optimizer} needs {module.split('.')[0]}, which is not installed: "
            "pip install 'mmaudio-lora[optimizers]', or take optimizer=adamw"
        ) from error
    if config.optimizer == "prodigy":  # as its authors advise for warm-up and falling schedules
        settings |= {"safeguard_warmup": True, "use_bias_correction": True}
    optimizer: torch.optim.Optimizer = optimizer_class(groups, **settings)
    return optimizer


def build_parameter_groups(parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups by learning-rate factor and weight decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        factor = config.lora_plus_ratio if ".lora_B." in name else 1.0
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    return [{"params": group, "weight_decay": decay, LR_FACTOR: factor} for (factor, decay), group in groups.items()]


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step number `step` (from 0): linear warm-up, then the schedule."""
    warmup_factor = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    fraction = min(1.0, max(0, step - config.warmup_steps) / max(1, config.total_steps - config.warmup_steps))
    decays = {"cosine": 0.5 + 0.5 * math.cos(math.pi * fraction), "linear": 1.0 - fraction, "constant": 1.0}
    decay = decays[config.schedule]
    return config.learning_rate * warmup_factor * (FINAL_LR_FACTOR + (1 - FINAL_LR_FACTOR) * decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group: `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[LR_FACTOR]
