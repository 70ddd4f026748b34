"""Copies of a network with adapters in their weights: W + strength * scale * B A, in float32, rounded once.

r rank, k kernel.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adapter_file import Adapter, AdapterError, LowRank

_ATTRIBUTE = "mmaudio_lora_stack"


class Shape(NamedTuple):
    """What tells the released models apart."""

    latent_dim: int
    width: int
    joint_blocks: int
    fused_blocks: int
    v2: bool


SHAPES = {
    "small_16k": Shape(20, 448, 4, 8, False),
    "small_44k": Shape(40, 448, 4, 8, False),
    "medium_44k": Shape(40, 896, 4, 8, False),
    "large_44k": Shape(40, 896, 7, 14, False),
    "large_44k_v2": Shape(40, 896, 7, 14, True),
}


class Stack(NamedTuple):
    """The network without adapters, and the adapters with their strengths."""

    network: nn.Module
    adapters: tuple[tuple[Adapter, float], ...] = ()


def stack_of(network: nn.Module) -> Stack:
    """What `patch_network` put into the weights of `network`; nothing for a network as it was loaded."""
    stack = getattr(network, _ATTRIBUTE, None)
    return stack if isinstance(stack, Stack) else Stack(network)


def describe_stack(network: nn.Module) -> str:
    """The adapters of a network, one a line."""
    lines = [f"{adapter.name} at {strength:g}: {adapter.summary}" for adapter, strength in stack_of(network).adapters]
    return "\n".join(lines) or "no adapter"


@torch.no_grad()
def patch_network(network: nn.Module, adapter: Adapter, strength: float) -> nn.Module:
    """A copy of the network with one more adapter; weights without an adapter are shared with it.

    Raises AdapterError for an adapter of another model.
    """
    base, adapters = stack_of(network)
    check_fit(base, adapter)
    patched, stack = _copy(base), Stack(base, (*adapters, (adapter, strength)))
    originals = dict(base.named_parameters())
    changes: dict[str, Tensor] = {}
    for other, weight in stack.adapters:
        for name, layer in other.layers.items():
            _add(changes, f"{name}.weight", _weight_change(originals[f"{name}.weight"], layer, weight))
        for name, bias in other.biases.items():
            original = originals[f"{name}.bias"].float()
            _add(changes, f"{name}.bias", weight * (bias.to(original) - original))
    for name, parameter in patched.named_parameters():
        if name in changes:
            parameter.data = (originals[name].float() + changes[name]).to(parameter.dtype)
    setattr(patched, _ATTRIBUTE, stack)
    return patched


def _copy(network: nn.Module) -> nn.Module:
    """A copy that shares its values: parameters of its own on the same memory, all else copied."""
    memo: dict[int, Any] = {id(parameter): nn.Parameter(parameter.data, False) for parameter in network.parameters()}
    return copy.deepcopy(network, memo)


def _add(changes: dict[str, Tensor], name: str, change: Tensor) -> None:
    changes[name] = changes[name] + change if name in changes else change


def _weight_change(weight: Tensor, layer: LowRank, strength: float) -> Tensor:
    """The change of a weight (out, in) or (out, in, k) in float32."""
    original = weight.float()
    a, b = layer.a.to(original).flatten(1), layer.b.to(original).flatten(1)
    change = (strength * layer.scale) * (b @ a).view_as(original)
    if layer.magnitude is None:
        return change
    adapted = original + change
    magnitude = torch.lerp(original.norm(dim=1), layer.magnitude.to(original), strength)
    rows: Tensor = magnitude / adapted.norm(dim=1)  # (out,)
    return rows[:, None] * adapted - original


def check_fit(network: nn.Module, adapter: Adapter) -> None:
    """Raise AdapterError for an adapter that is of another model than the network, or does not fit its layers."""
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    model = find_model(shapes)
    if adapter.base_model and model and adapter.base_model != model:
        hint = f"load {adapter.base_model}, or train on {model}"
        if adapter.base_model.endswith("_16k"):
            hint = "ComfyUI-MMAudio loads 44.1 kHz models only: train with --mode 44k"
        bases = f"an adapter of {_with_rate(adapter.base_model)}, this model is {_with_rate(model)}"
        raise AdapterError(f"{adapter.name} is {bases}; {hint}")
    for name, layer in adapter.layers.items():
        shape, adapted = shapes.get(f"{name}.weight"), (layer.b.shape[0], *layer.a.shape[1:])
        if shape != adapted:
            problem = f"has no layer {name}" if shape is None else f"has {list(shape)} in {name}, not {list(adapted)}"
            raise AdapterError(f"{adapter.name} does not fit: this model ({model or 'unknown'}) {problem}")
        if layer.magnitude is not None and (len(shape) != 2 or layer.magnitude.shape != shape[:1]):
            raise AdapterError(f"{adapter.name}: DoRA works on linear layers, {name} is none or of another width")
    for name, bias in adapter.biases.items():
        if shapes.get(f"{name}.bias") != tuple(bias.shape):
            raise AdapterError(f"{adapter.name} does not fit: this model has no bias {name}.bias of {bias.numel()}")


def find_model(shapes: dict[str, tuple[int, ...]]) -> str:
    """The released model that has parameters of these shapes; empty for another one."""
    if "audio_input_proj.0.weight" not in shapes or "t_embed.mlp.0.weight" not in shapes:
        raise AdapterError("this is no model of MMAudio: connect MMAudio ModelLoader")
    width, latent_dim, *_ = shapes["audio_input_proj.0.weight"]
    joint, fused = (
        len({name.split(".")[1] for name in shapes if name.startswith(f"{blocks}.")})
        for blocks in ("joint_blocks", "fused_blocks")
    )
    shape = Shape(latent_dim, width, joint, fused, shapes["t_embed.mlp.0.weight"][1] == width)
    return next((name for name, known in SHAPES.items() if known == shape), "")


def _with_rate(model: str) -> str:
    return f"{model} ({'16' if model.endswith('_16k') else '44.1'} kHz)"
