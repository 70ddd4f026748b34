"""Adapters of the mini network: every kind, and one with golden values."""

from __future__ import annotations

import torch
from helpers import fill, mini

from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora, expand_targets, load_adapter_state
from mmaudio.lora.targets import LINEAR_TARGETS
from mmaudio.model.networks import build_network

LINEARS = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": list(LINEAR_TARGETS)}
KINDS = {
    "rslora": LoRAConfig(rank=4, alpha=8.0, dropout=0.0, use_rslora=True),
    "dora": LoRAConfig(**LINEARS, use_dora=True),
    "pissa": LoRAConfig(**LINEARS, init_lora_weights="pissa"),
    "pissa and rslora": LoRAConfig(
        **LINEARS, init_lora_weights="pissa", use_rslora=True, rank_pattern={"text_block.ffn": 2}
    ),
    "ranks": LoRAConfig(
        rank=4, alpha=8.0, dropout=0.0, rank_pattern={"attn.qkv": 8, "ffn.w1": 2}, alpha_pattern={"w1": 3.0}
    ),
    "all biases": LoRAConfig(rank=4, alpha=8.0, dropout=0.0, bias="all"),
    "own biases": LoRAConfig(rank=4, alpha=8.0, dropout=0.0, bias="lora_only"),
    "further": LoRAConfig(rank=4, alpha=8.0, dropout=0.0, extra_targets=["linear1", "*_input_proj"]),
    "full": LoRAConfig(enabled=False),
}
RANK_4 = {"rank": 4, "alpha": 8.0, "dropout": 0.0}


def seeded_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def adapted_mini(filled_adapter=True, **settings):
    """The mini network and its adapter, filled with the golden values."""
    network = mini()
    model = add_lora(network, LoRAConfig(**RANK_4 | settings), seeded_generator())
    if filled_adapter:
        shapes = {key: tuple(value.shape) for key, value in adapter_state(model).items()}
        load_adapter_state(
            model, {key: torch.as_tensor(fill.fill_values(key, shape)).float() for key, shape in shapes.items()}
        )
    return network, model.eval()


def zero_adapter_state(model, patterns=None, rank=1):
    """An adapter's zeros in the shapes of a released variant, under PEFT's keys."""
    with torch.device("meta"):
        network = build_network(model)
    config = LoRAConfig(rank) if patterns is None else LoRAConfig(rank, target_modules=patterns)
    state = {}
    for name in expand_targets(network, config.target_modules):
        out, inside, *kernel = network.get_submodule(name).weight.shape
        state[f"base_model.model.{name}.lora_A.weight"] = torch.zeros(rank, inside, *kernel)
        state[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(out, rank, *(1 for _ in kernel))
    return state
