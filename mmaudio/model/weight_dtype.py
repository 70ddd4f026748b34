"""Casting of weights to the compute dtype once, instead of by autocast in every call, with fast memory layouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmaudio.model.layers import Conv1d, tap_major


def cast_weights(network: nn.Module, dtype: torch.dtype, only_frozen: bool = False) -> None:
    """Cast the weights of all linears and convolutions in place: those that autocast would cast.

    Norms, learned embeddings, tables and statistics keep their dtypes, and with `only_frozen` so do trained weights. On
    a CPU, convolution weights also get a tap-major layout: sampling multiplies them as matrices, and a convolution in
    training takes three quarters of the time (`benchmarks.generation`, `benchmarks.training`).
    """
    if dtype == torch.float32:
        return
    for module, parameter in _castable(network):
        if only_frozen and parameter.requires_grad:
            continue
        values = parameter.data.to(dtype)
        use_tap_major = isinstance(module, Conv1d) and values.ndim == 3 and values.device.type == "cpu"
        parameter.data = tap_major(values) if use_tap_major else values


@contextmanager
def weights_cast_to(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Context with weights cast by `cast_weights`; the original weights are restored afterwards."""
    originals: list[tuple[nn.Parameter, Tensor]] = [(parameter, parameter.data) for _, parameter in _castable(network)]
    try:
        cast_weights(network, dtype)
        yield
    finally:
        for parameter, values in originals:
            parameter.data = values


def _castable(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Float32 parameters of linears and convolutions, including adapters, with their modules."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            for weight in module.parameters(recurse=False):
                if weight.dtype == torch.float32:
                    yield module, weight
