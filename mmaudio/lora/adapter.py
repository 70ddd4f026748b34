"""LoRA adapters through peft: adding, saving, loading, scaling and merging.

    model = add_lora(network, LoRAConfig(rank=32), generator)
    loss = velocity_loss(network, ...)       # the same network computes with the adapter
    state = adapter_state(model)             # PEFT's keys
    network = merge(model)                   # plain weights, exactly the released keys

peft replaces the adapted layers inside the network in place: the `MMAudio` object given to `add_lora` is still the one
to call, and `adapted_network(model)` returns it. With `enabled=False` there is no adapter: the model is the network
itself, all its weights are trained, and every function here accepts it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora import base_values, pissa
from mmaudio.lora.config import DEFAULT_TARGETS, LoRAConfig, Phase, progressive
from mmaudio.lora.peft_layers import ADAPTER_NAME, is_peft_model, lora_layers
from mmaudio.lora.strength import MAX_STRENGTH, Strength, parse_strength
from mmaudio.lora.targets import expand_targets, layer_settings, select_targets
from mmaudio.model.blocks import block_name
from mmaudio.model.networks import MMAudio
from mmaudio.model.state_dict import check_keys

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = [
    "DEFAULT_TARGETS",
    "MAX_STRENGTH",
    "LoRAConfig",
    "ParameterCounts",
    "Phase",
    "adapted_network",
    "adapter_state",
    "add_lora",
    "draw_lora_a",
    "expand_targets",
    "inject_adapter",
    "load_adapter_state",
    "merge",
    "merged_weights",
    "parameter_counts",
    "peft_settings",
    "progressive",
    "saved_lora_config",
    "select_targets",
    "set_strength",
]

NOT_FINITE = "the adapter's weights are not finite: it is broken; take another checkpoint"


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts of an adapted network."""

    total: int
    """Base and adapter together."""
    trainable: int
    blocks: dict[str, int]
    """Trainable parameters by block (`joint_blocks.0`, ...), in the order of the network."""


def add_lora(network: MMAudio, config: LoRAConfig, generator: torch.Generator | None = None) -> nn.Module:
    """Freeze the network and add a trainable adapter in place; initially the output does not change.

    With a (CPU) generator the A matrices are drawn from it, Kaiming uniform, so a seed gives the same adapter on every
    device. Raises ConfigError for a target that matches nothing or does not support this kind of adapter, for a rank
    larger than its layer, and for a network that already has an adapter.
    """
    _refuse_adapted(network)
    if not config.enabled:
        network.requires_grad_(True)
        base_values.record(network)
        return network
    model = inject_adapter(network, config, select_targets(network, config))
    if generator is not None:
        for layer in lora_layers(model).values():
            weight = layer.lora_A[ADAPTER_NAME].weight
            weight.data.copy_(draw_lora_a(weight.shape, generator))
    if config.init_lora_weights == "pissa":
        pissa.initialize(model)
    return model


def inject_adapter(network: MMAudio, config: LoRAConfig, targets: Sequence[str]) -> nn.Module:
    """Add a new adapter to the layers `targets`, by full names, without the checks of `add_lora`."""
    from peft import get_peft_model  # slow to import

    _refuse_adapted(network)
    model: nn.Module = get_peft_model(network, peft_settings(config, targets))
    base_values.record(model)
    return model


def _refuse_adapted(network: nn.Module) -> None:
    if lora_layers(network):
        raise ConfigError("this network already has an adapter: merge it, or build a new network")


def peft_settings(config: LoRAConfig, targets: Sequence[str]) -> LoraConfig:
    """Convert the settings to peft's LoraConfig, for the modules `targets` by full names."""
    from peft import LoraConfig  # slow to import

    from mmaudio.lora.fused_layers import LORA_LAYERS

    layers = layer_settings(config, targets)
    peft_config = LoraConfig(
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
    peft_config._register_custom_module(LORA_LAYERS)
    return peft_config


def draw_lora_a(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw an A matrix, Kaiming uniform, on the CPU."""
    weight = torch.empty(*shape)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    return weight


def adapted_network(model: nn.Module) -> MMAudio:
    """The network inside `model`: the object given to `add_lora`, which computes with the adapter."""
    network = model.get_base_model() if is_peft_model(model) else model
    assert isinstance(network, MMAudio)
    return network


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy the adapter's weights under PEFT's keys; of full fine-tuning, all weights of the network.

    A PiSSA adapter is converted to the equivalent plain LoRA of twice the rank; see `saved_lora_config`.
    """
    state = {key: value.detach().clone() for key, value in _live_state(model).items()}
    return pissa.to_lora_state(model, state)


def saved_lora_config(model: nn.Module, config: LoRAConfig) -> LoRAConfig:
    """The settings that describe the weights of `adapter_state`."""
    return pissa.to_lora_config(model, config)


def _live_state(model: nn.Module) -> dict[str, Tensor]:
    if not is_peft_model(model):
        return dict(model.named_parameters())
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the adapter's weights; WeightsError with the first keys that do not fit."""
    check_keys(_live_state(model), state, "adapter")
    if is_peft_model(model):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, dict(state))
    else:
        model.load_state_dict(dict(state), strict=False)
    base_values.get(model).trained.clear()


def set_strength(model: nn.Module, strength: float | str | Strength) -> None:
    """Scale the adapter: 0 is the base model, 1 the adapter as trained; a later merge keeps the scale.

    Parameters trained in place (biases, DoRA's magnitudes, all weights) are interpolated between both models. By part
    of the network: `joint=1,fused=0.5`. Raises ConfigError as `parse_strength`.
    """
    strength = parse_strength(strength)
    for name, layer in lora_layers(model).items():
        layer.set_scale(ADAPTER_NAME, strength.at(name))
    base_values.interpolate(model, strength.at)


def merge(model: nn.Module) -> MMAudio:
    """Merge the adapter into the base weights in float32 on the CPU and remove it; the keys are the released ones.

    `model` must not be used afterwards. The returned network, the object given to `add_lora`, is in float32 on its
    former device. Raises WeightsError if the merged weights are not finite.
    """
    network = adapted_network(model)
    device = next(network.parameters()).device
    network.to("cpu", torch.float32)  # on a GPU the convolutions that merge may round to TF32
    non_finite = not all(weight.isfinite().all() for weight in network.parameters())
    try:
        if is_peft_model(model) and not non_finite:
            model.merge_and_unload(safe_merge=True)
    except ValueError:
        non_finite = True
    if non_finite:
        raise WeightsError(NOT_FINITE)
    base_values.clear(network)
    return network.to(device)


@contextmanager
def merged_weights(model: nn.Module) -> Iterator[None]:
    """Context in which the adapter is merged into copies of the base weights, so that its layers cost nothing.

    The base weights themselves are there again afterwards, bit for bit; beside a GPU they wait on the CPU. Raises
    WeightsError if the merged weights are not finite.
    """
    layers = list(lora_layers(model).values())
    weights = [layer.get_base_layer().weight for layer in layers]
    values = [weight.data.cpu() if weight.device.type == "cuda" else weight.data for weight in weights]
    try:
        try:
            for layer in layers:
                layer.merge(safe_merge=True)
        except ValueError as error:
            raise WeightsError(NOT_FINITE) from error
        yield
    finally:
        for layer, weight, value in zip(layers, weights, values, strict=True):
            layer.get_base_layer().weight.data = value.to(weight.device)
            layer.merged_adapters.clear()


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a network with or without an adapter."""
    blocks: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            blocks[block_name(name)] += parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCounts(total, sum(blocks.values()), dict(blocks))
