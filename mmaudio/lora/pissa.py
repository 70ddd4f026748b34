"""PiSSA: initialization of A and B from the largest singular values of a layer's weight (arXiv 2404.02948).

The initial product is subtracted from the weight, W = R + s B0 A0, and A and B are trained. The saved adapter is the
equivalent plain LoRA s B A - s B0 A0 of twice the rank on the original W, which any reader of adapters can load.

r rank, s scale of the adapter, P = s B0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmaudio.lora import base_values
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_layers import ADAPTER_NAME, KEY_PREFIX, lora_layers


def initialize(model: nn.Module) -> None:
    """Initialize every adapted linear from its singular values; the network's output does not change."""
    factors = {}
    for name, layer in lora_layers(model).items():
        weight = layer.get_base_layer().weight
        if weight.is_meta:  # a network for counting parameters
            continue
        original = weight.detach().clone()
        layer.pissa_init(ADAPTER_NAME, "pissa")
        weight.data = original
        a, b = (half[ADAPTER_NAME].weight.detach() for half in (layer.lora_A, layer.lora_B))
        factors[name] = (a.clone(), layer.scaling[ADAPTER_NAME] * b)
    subtract_factors(model, factors)


def subtract_factors(model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Subtract P A0 from the base weights; `factors` are A0 (r, in) and P (out, r) by layer, also of a resumed run."""
    values, layers = base_values.get(model), lora_layers(model)
    for name, pair in factors.items():
        weight = layers[name].get_base_layer().weight
        original = values.base.setdefault(f"{KEY_PREFIX}{name}.base_layer.weight", weight.detach().clone())
        a, p = (half.to(weight.device) for half in pair)
        values.pissa_factors[name] = (a, p)
        weight.data = original - p @ a


def to_lora_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of the equivalent plain LoRA: A stacked on A0, B beside -P / s; other weights unchanged."""
    layers = lora_layers(model)
    for name, (a, p) in base_values.get(model).pissa_factors.items():
        key_a, key_b = (f"{KEY_PREFIX}{name}.lora_{half}.weight" for half in "AB")
        state[key_a] = torch.cat([state[key_a], a])
        state[key_b] = torch.cat([state[key_b], -p / layers[name].scaling[ADAPTER_NAME]], 1)
    return state


def to_lora_config(model: nn.Module, config: LoRAConfig) -> LoRAConfig:
    """Settings of the equivalent plain LoRA, in which every layer keeps its scale."""
    factors, layers = base_values.get(model).pissa_factors, lora_layers(model)
    if not factors:
        return config
    ranks = {name: layers[name].r[ADAPTER_NAME] + len(a) for name, (a, _) in factors.items()}
    alphas = {
        name: layers[name].scaling[ADAPTER_NAME] * (math.sqrt(rank) if config.use_rslora else rank)
        for name, rank in ranks.items()
    }
    rank, alpha = max(ranks.values()), max(alphas.values())
    return dataclasses.replace(
        config,
        rank=rank,
        alpha=alpha,
        rank_pattern={name: layer_rank for name, layer_rank in ranks.items() if layer_rank != rank},
        alpha_pattern={name: layer_alpha for name, layer_alpha in alphas.items() if layer_alpha != alpha},
        init_lora_weights="kaiming",
    )
