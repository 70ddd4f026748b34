"""Lookup of peft's LoRA layers inside a network."""

from __future__ import annotations

from peft.tuners.lora import LoraLayer
from torch import nn

ADAPTER_NAME = "default"
"""Name under which peft stores the adapter."""
KEY_PREFIX = "base_model.model."
"""Prefix of PEFT's state-dict keys."""


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Adapted layers by module name, in the order of the network."""
    modules = model.named_modules()
    return {name.removeprefix(KEY_PREFIX): module for name, module in modules if isinstance(module, LoraLayer)}
