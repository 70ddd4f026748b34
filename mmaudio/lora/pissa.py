"""PiSSA: an adapter that starts as the largest singular values of a layer's weights (arXiv 2404.02948).

What A and B stand for at the start is taken out of the weights, W = R + s B0 A0, and trained from there. Saved, it is
the plain adapter s B A - s B0 A0 on the untouched W, of twice the rank, which everything that reads adapters can read.

r rank, s the adapter's scale; P is s B0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmaudio.lora import base_values
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_layers import ADAPTER, PREFIX, lora_layers


def start(model: nn.Module) -> None:
    """Let every adapted layer, linears all, start from its singular values; the network's function stays as it is."""
    taken = {}
    for name, layer in lora_layers(model).items():
        weight = layer.get_base_layer().weight
        if weight.is_meta:  # only parameters are counted there
            continue
        whole = weight.detach().clone()
        layer.pissa_init(ADAPTER, "pissa")
        weight.data = whole
        a, b = (half[ADAPTER].weight.detach() for half in (layer.lora_A, layer.lora_B))
        taken[name] = (a.clone(), layer.scaling[ADAPTER] * b)
    take_out(model, taken)


def take_out(model: nn.Module, taken: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Take A0 (r, in) and P (out, r) of a run that starts or goes on, by layer, out of the base's weights."""
    values, layers = base_values.of(model), lora_layers(model)
    for name, pair in taken.items():
        weight = layers[name].get_base_layer().weight
        whole = values.base.setdefault(f"{PREFIX}{name}.base_layer.weight", weight.detach().clone())
        a, p = (half.to(weight.device) for half in pair)
        values.taken_out[name] = (a, p)
        weight.data = whole - p @ a


def as_lora(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain adapter with the same effect: A over A0, B beside -P / s; others as they are."""
    layers = lora_layers(model)
    for name, (a, p) in base_values.of(model).taken_out.items():
        key_a, key_b = (f"{PREFIX}{name}.lora_{half}.weight" for half in "AB")
        state[key_a] = torch.cat([state[key_a], a])
        state[key_b] = torch.cat([state[key_b], -p / layers[name].scaling[ADAPTER]], 1)
    return state


def as_lora_config(model: nn.Module, config: LoRAConfig) -> LoRAConfig:
    """The settings of that plain adapter, in which every layer keeps its scale."""
    taken, layers = base_values.of(model).taken_out, lora_layers(model)
    if not taken:
        return config
    ranks = {name: layers[name].r[ADAPTER] + len(a) for name, (a, _) in taken.items()}
    alphas = {
        name: layers[name].scaling[ADAPTER] * (math.sqrt(rank) if config.use_rslora else rank)
        for name, rank in ranks.items()
    }
    rank, alpha = max(ranks.values()), max(alphas.values())
    return dataclasses.replace(
        config,
        rank=rank,
        alpha=alpha,
        rank_pattern={name: own for name, own in ranks.items() if own != rank},
        alpha_pattern={name: own for name, own in alphas.items() if own != alpha},
        init_lora_weights="kaiming",
    )
