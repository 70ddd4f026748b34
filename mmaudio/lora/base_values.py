"""What an adapter puts in the place of the base's own values, and those values: biases, DoRA's magnitudes, all weights.

LoRA's own matrices stand beside the base and can be left out; these cannot, so the base's values are kept to compute
what the base computes, and anything between the two.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from torch import Tensor, nn

_ATTRIBUTE = "mmaudio_base_values"


@dataclass
class BaseValues:
    """Of one model; on the device that it was adapted on."""

    base: dict[str, Tensor] = field(default_factory=dict)
    """The base's values, by the parameter's name."""
    trained: dict[str, Tensor] = field(default_factory=dict)
    """Their own values while `blend` has put others in their place."""
    taken_out: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """The factors of what PiSSA took out of the base's weights, by layer; see `mmaudio.lora.pissa`."""

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept, each once."""
        yield from (*self.base.values(), *self.trained.values())
        for pair in self.taken_out.values():
            yield from pair


def keep(model: nn.Module) -> None:
    """Note the values of all trained parameters that are not A or B: call it while they are the base's."""
    noted = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not {"lora_A", "lora_B"} & set(name.split("."))
    }
    setattr(model, _ATTRIBUTE, BaseValues(noted))


def of(model: nn.Module) -> BaseValues:
    """The values that are kept for `model`, none where it was not adapted here."""
    found = getattr(model, _ATTRIBUTE, None)
    return found if isinstance(found, BaseValues) else BaseValues()


def forget(model: nn.Module) -> None:
    """Let go of what is kept for a network whose values are final."""
    if hasattr(model, _ATTRIBUTE):
        delattr(model, _ATTRIBUTE)


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within it the network computes what the base model does; a graph built outside stays valid."""
    kept, parameters = of(model).base, dict(model.named_parameters())
    own = {name: parameters[name].data for name in kept}
    try:
        for name, value in kept.items():
            parameters[name].data = value.to(parameters[name].device)
        with _disabled(model):
            yield
    finally:
        for name, value in own.items():
            parameters[name].data = value


@contextmanager
def _disabled(model: nn.Module) -> Iterator[None]:
    if not isinstance(model, PeftModel):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Careful, disabling adapter layers")  # peft knows nothing of the values here
        disabled = model.disable_adapter()
        disabled.__enter__()
    try:
        yield
    finally:
        disabled.__exit__(None, None, None)


def blend(model: nn.Module, share: float) -> None:
    """Put values on the line from the base's (0) to the trained ones (1) in their place; beyond 1, further along it."""
    values, parameters = of(model), dict(model.named_parameters())
    if not values.trained:
        values.trained = {name: parameters[name].detach().clone() for name in values.base}
    for name, base in values.base.items():
        parameter = parameters[name]
        start, end = (value.to(parameter.device, torch.float32) for value in (base, values.trained[name]))
        parameter.data = torch.lerp(start, end, share).to(parameter.dtype)
