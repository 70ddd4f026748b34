"""Weights made once as autocast and the matrix products want them, instead of at every call: types and layouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmaudio.model.layers import Conv1d, by_taps


def cast_weights(network: nn.Module, dtype: torch.dtype, frozen_alone: bool = False) -> None:
    """Cast the weights of all linears and convolutions, in place: what autocast would cast, and nothing else.

    Norms, learned rows, tables and statistics keep their types, and `frozen_alone` leaves what is trained. On a CPU the
    convolutions' weights are laid out tap by tap, too: sampling multiplies them as matrices, and training takes three
    quarters of the time for a convolution (`benchmarks.generation`, `benchmarks.training`).
    """
    if dtype == torch.float32:
        return
    for module, parameter in _castable(network):
        if frozen_alone and parameter.requires_grad:
            continue
        values = parameter.data.to(dtype)
        lies_by_taps = isinstance(module, Conv1d) and values.ndim == 3 and values.device.type == "cpu"
        parameter.data = by_taps(values) if lies_by_taps else values


@contextmanager
def weights_in(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """`cast_weights` for as long as the block lasts; afterwards the weights are what they were."""
    kept: list[tuple[nn.Parameter, Tensor]] = [(parameter, parameter.data) for _, parameter in _castable(network)]
    try:
        cast_weights(network, dtype)
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values


def _castable(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """The float32 parameters of linears and convolutions, adapters' included, with their modules."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            for weight in module.parameters(recurse=False):
                if weight.dtype == torch.float32:
                    yield module, weight
