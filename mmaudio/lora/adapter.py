"""LoRA through peft: adapting a network's layers, and what can be done with an adapter.

    model = add_lora(network, LoRAConfig(rank=32), generator)
    loss = velocity_loss(network, ...)       # the same network computes with the adapter
    state = adapter_state(model)             # PEFT's keys
    network = merge(model)                   # plain weights, exactly the released keys

peft replaces the adapted layers inside the network, in place: the `MMAudio` object given to `add_lora` stays the one to
call, and `adapted_network(model)` is that object. With `enabled=False` there is no adapter: the network itself is the
model, and all its weights are trained; every function here takes it as well.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora import base_values, pissa
from mmaudio.lora.config import DEFAULT_TARGETS, LoRAConfig, Phase, progressive
from mmaudio.lora.fused_layers import KINDS
from mmaudio.lora.peft_layers import ADAPTER, lora_layers
from mmaudio.lora.targets import expand_targets, fresh_targets, layer_settings
from mmaudio.model.networks import MMAudio
from mmaudio.model.state_dict import check_keys

__all__ = [
    "DEFAULT_TARGETS",
    "MAX_STRENGTH",
    "LoRAConfig",
    "ParameterCounts",
    "Phase",
    "adapted_network",
    "adapter_state",
    "add_lora",
    "drawn",
    "expand_targets",
    "fresh_targets",
    "inject",
    "load_adapter_state",
    "merge",
    "parameter_counts",
    "peft_settings",
    "progressive",
    "saved_config",
    "set_strength",
]
MAX_STRENGTH = 1.5
"""The largest factor on an adapter's effect; 1 is as trained."""


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of an adapted network."""

    total: int
    """Base and adapter."""
    trainable: int
    blocks: dict[str, int]
    """Trainable ones by block (`joint_blocks.0`, ...), in the network's order."""


def add_lora(network: MMAudio, config: LoRAConfig, generator: torch.Generator | None = None) -> nn.Module:
    """Freezes the network and adds a trainable adapter that changes nothing yet, in place.

    With a (CPU) generator the A matrices are drawn from it, Kaiming uniform, so a seed gives the same adapter anywhere.
    Raises ConfigError for a target that matches nothing or is no place for this kind of adapter, for a rank larger than
    its layer, and for a network that has an adapter already.
    """
    _refuse_adapted(network)
    if not config.enabled:
        network.requires_grad_(True)
        base_values.keep(network)
        return network
    model = inject(network, config, fresh_targets(network, config))
    if generator is not None:
        for layer in lora_layers(model).values():
            weight = layer.lora_A[ADAPTER].weight
            weight.data.copy_(drawn(weight.shape, generator))
    if config.init_lora_weights == "pissa":
        pissa.start(model)
    return model


def inject(network: MMAudio, config: LoRAConfig, targets: Sequence[str]) -> nn.Module:
    """Adds an adapter on the layers `targets`, by full names, that changes nothing, without `add_lora`'s checks."""
    _refuse_adapted(network)
    model: nn.Module = get_peft_model(network, peft_settings(config, targets))
    base_values.keep(model)
    return model


def _refuse_adapted(network: nn.Module) -> None:
    if lora_layers(network):
        raise ConfigError("this network has an adapter already: merge it, or build a new network")


def peft_settings(config: LoRAConfig, targets: Sequence[str]) -> LoraConfig:
    """The settings as peft's own object, for the modules `targets` in full."""
    layers = layer_settings(config, targets)
    made = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(targets),
        rank_pattern={name: layer.rank for name, layer in layers.items() if layer.rank != config.rank},
        alpha_pattern={name: layer.alpha for name, layer in layers.items() if layer.alpha != config.alpha},
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias=config.bias,
    )
    made._register_custom_module(KINDS)
    return made


def drawn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A new A matrix, Kaiming uniform, on the CPU."""
    values = torch.empty(*shape)
    nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
    return values


def adapted_network(model: nn.Module) -> MMAudio:
    """The network inside, the object given to `add_lora`: it computes with the adapter."""
    network = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(network, MMAudio)
    return network


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the adapter's weights under the keys that PEFT saves (all weights, where all are trained).

    PiSSA's is the plain adapter of the same effect on the untouched base, of twice the rank; see `saved_config`.
    """
    state = {key: value.detach().clone() for key, value in _references(model).items()}
    return pissa.as_lora(model, state)


def saved_config(model: nn.Module, config: LoRAConfig) -> LoRAConfig:
    """The settings that `adapter_state` is to be read with."""
    return pissa.as_lora_config(model, config)


def _references(model: nn.Module) -> dict[str, Tensor]:
    if not isinstance(model, PeftModel):
        return dict(model.named_parameters())
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Sets the adapter's weights; raises WeightsError naming the first keys that do not fit."""
    check_keys(_references(model), state, "adapter")
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, dict(state))
    else:
        model.load_state_dict(dict(state), strict=False)
    base_values.of(model).trained.clear()


def set_strength(model: nn.Module, strength: float) -> None:
    """Scales the adapter's effect: 0 is the base, 1 as trained; a merge afterwards keeps the scale.

    What is trained in the base's place (biases, DoRA's magnitudes, all weights) goes from the base's value to its own.
    Raises ConfigError below 0 and above MAX_STRENGTH.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise ConfigError(f"strength={strength:g}: from 0 (the base model) over 1 (as trained) to {MAX_STRENGTH:g}")
    for layer in lora_layers(model).values():
        layer.set_scale(ADAPTER, strength)
    base_values.blend(model, strength)


def merge(model: nn.Module) -> MMAudio:
    """Adds the adapter to the base weights, in float32 on the CPU, and removes it: plain weights, the released keys.

    Uses up `model`; the network, the object given to `add_lora`, returns to its device, in float32. Raises WeightsError
    where the merged weights are not finite.
    """
    network = adapted_network(model)
    device = next(network.parameters()).device
    network.to("cpu", torch.float32)  # on a GPU the convolutions that merge may round to TF32
    broken = not all(weight.isfinite().all() for weight in network.parameters())
    try:
        if isinstance(model, PeftModel) and not broken:
            model.merge_and_unload(safe_merge=True)
    except ValueError:
        broken = True
    if broken:
        raise WeightsError("the adapter's weights are not finite: it is broken; take another checkpoint")
    base_values.forget(network)
    return network.to(device)


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Counts the parameters of an adapted (or plain) network."""
    blocks: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = re.search(r"(joint|fused)_blocks\.\d+", name)
            blocks[found.group() if found else "other"] += parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCounts(total, sum(blocks.values()), dict(blocks))
