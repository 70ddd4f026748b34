"""Finding peft's layers inside a network."""

from __future__ import annotations

from peft.tuners.lora import LoraLayer
from torch import nn

ADAPTER = "default"
"""What peft calls the only adapter."""
PREFIX = "base_model.model."
"""What PEFT's keys begin with."""


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers by their names in the network, in its order."""
    modules = model.named_modules()
    return {name.removeprefix(PREFIX): module for name, module in modules if isinstance(module, LoraLayer)}
