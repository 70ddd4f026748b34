"""Exponential moving average (EMA) of the trainable parameters, as pure functions over tensors by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def update_ema(ema: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], decay: float, step: int) -> None:
    """Move the EMA toward the parameters, in place; the decay is smaller in the first steps, for an unbiased start.

    `step` counts the optimizer steps that are done.
    """
    rate = 1.0 - min(decay, (1 + step) / (10 + step))
    averages, values = [ema[name] for name in parameters], [value.detach() for value in parameters.values()]
    torch._foreach_lerp_(averages, values, rate)


@contextmanager
def swap_values(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Run the block with `values` in place of the parameters."""
    current = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    copy_values(parameters, values)
    try:
        yield
    finally:
        copy_values(parameters, current)


@torch.no_grad()
def copy_values(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy `values` into the parameters of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
