"""Weights in the type that autocast computes in, cast once instead of at every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of all linears and convolutions, in place: what autocast would cast, and nothing else.

    Norms, learned rows, tables and statistics keep their types, so that under autocast every output stays the same to
    the bit.
    """
    for parameter in _castable(network):
        parameter.data = parameter.data.to(dtype)


@contextmanager
def weights_in(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """`cast_weights` for as long as the block lasts; afterwards the weights are what they were."""
    kept: list[tuple[nn.Parameter, Tensor]] = [(parameter, parameter.data) for parameter in _castable(network)]
    try:
        cast_weights(network, dtype)
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values


def _castable(network: nn.Module) -> Iterator[nn.Parameter]:
    """The float32 parameters of linears and convolutions, adapters' included."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            yield from (weight for weight in module.parameters(recurse=False) if weight.dtype == torch.float32)
