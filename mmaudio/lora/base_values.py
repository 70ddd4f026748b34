"""Base model's values of parameters that an adapter trains in place: biases, DoRA magnitudes, or all weights.

LoRA's A and B matrices are separate from the base weights and can be disabled. The parameters here cannot, so a copy of
their base values allows computing the base model, or an interpolation between base and adapted model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmaudio.lora.peft_layers import is_peft_model

_ATTRIBUTE = "mmaudio_base_values"


@dataclass
class BaseValues:
    """Values of one model, on the device on which the adapter was added."""

    base: dict[str, Tensor] = field(default_factory=dict)
    """Base values by parameter name."""
    trained: dict[str, Tensor] = field(default_factory=dict)
    """Trained values, filled while `interpolate` has replaced them in the model."""
    pissa_factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Low-rank factors that PiSSA subtracted from the base weights, by layer; see `mmaudio.lora.pissa`."""

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, each once."""
        yield from (*self.base.values(), *self.trained.values())
        for pair in self.pissa_factors.values():
            yield from pair


def record(model: nn.Module) -> None:
    """Copy the values of all trained parameters other than A and B; call it before training changes them."""
    values = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not {"lora_A", "lora_B"} & set(name.split("."))
    }
    record_base(model, values)


def record_base(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Take `values` as the base values of parameters, by name."""
    setattr(model, _ATTRIBUTE, BaseValues(values))


def get(model: nn.Module) -> BaseValues:
    """The recorded values of `model`; empty if nothing was recorded."""
    values = getattr(model, _ATTRIBUTE, None)
    return values if isinstance(values, BaseValues) else BaseValues()


def clear(model: nn.Module) -> None:
    """Delete the recorded values of a merged network."""
    if hasattr(model, _ATTRIBUTE):
        delattr(model, _ATTRIBUTE)


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Context in which the network computes the base model; an autograd graph built outside stays valid."""
    base, parameters = get(model).base, dict(model.named_parameters())
    trained = {name: parameters[name].data for name in base}
    try:
        for name, value in base.items():
            parameters[name].data = value.to(parameters[name].device)
        with _lora_disabled(model):
            yield
    finally:
        for name, value in trained.items():
            parameters[name].data = value


@contextmanager
def _lora_disabled(model: nn.Module) -> Iterator[None]:
    if not is_peft_model(model):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Careful, disabling adapter layers"
        )  # about the values that this module restores
        context = model.disable_adapter()
        context.__enter__()
    try:
        yield
    finally:
        context.__exit__(None, None, None)


def interpolate(model: nn.Module, weight: Callable[[str], float]) -> None:
    """Set the parameters to base + weight(name) * (trained - base); a weight above 1 extrapolates."""
    values, parameters = get(model), dict(model.named_parameters())
    if not values.trained:
        values.trained = {name: parameters[name].detach().clone() for name in values.base}
    for name, base in values.base.items():
        parameter = parameters[name]
        start, end = (value.to(parameter.device, torch.float32) for value in (base, values.trained[name]))
        parameter.data = torch.lerp(start, end, weight(name)).to(parameter.dtype)
