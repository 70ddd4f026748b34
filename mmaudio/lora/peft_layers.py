"""Lookup of peft's LoRA layers inside a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from torch import nn

from mmaudio.utils.garbage_collection import no_garbage_collection

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

ADAPTER_NAME = "default"
"""Name under which peft stores the adapter."""
KEY_PREFIX = "base_model.model."
"""Prefix of PEFT's state-dict keys."""


def is_peft_model(model: nn.Module) -> TypeGuard[PeftModel]:
    """Whether peft has wrapped the network."""
    from peft import PeftModel  # slow to import

    return isinstance(model, PeftModel)


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Adapted layers by module name, in the order of the network."""
    with no_garbage_collection():
        from peft.tuners.lora import LoraLayer  # slow to import

    modules = model.named_modules()
    return {name.removeprefix(KEY_PREFIX): module for name, module in modules if isinstance(module, LoraLayer)}
