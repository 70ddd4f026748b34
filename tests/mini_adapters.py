"""Adapters of the mini network: every kind, and one with golden values."""

from __future__ import annotations

import torch
from helpers import fill, mini
from safetensors.torch import save_file

from mmaudio.api import load_pretrained_with_lora
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora, expand_targets, load_adapter_state
from mmaudio.lora.checkpoint import AdapterFile, write_adapter
from mmaudio.lora.targets import LINEAR_TARGETS
from mmaudio.model.networks import build_network
from mmaudio.weights.store import file_sha256

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


TINY_TARGETS = ["joint_blocks.*.latent_block.attn.qkv", "fused_blocks.*.attn.qkv"]


def write_tiny_adapter(folder):
    """Weights of a random network of tiny_16k's shapes in `folder`, and an adapter for it, best_lora.pt."""
    generator = torch.Generator().manual_seed(0)
    network = build_network("tiny_16k")
    for weight in network.parameters():
        if not weight.any():
            weight.data.normal_(0, 0.05, generator=generator)
    save_file(network.state_dict(), folder / "network.safetensors")
    config = LoRAConfig(rank=4, alpha=8.0, target_modules=TINY_TARGETS)
    fresh = load_pretrained_with_lora("tiny_16k", lora_config=config, weights=folder, device="cpu")
    state = {
        key: torch.randn(value.shape, generator=generator) * 0.1
        for key, value in adapter_state(fresh.peft_model).items()
    }
    targets = list(fresh.peft_model.base_model.targeted_module_names)
    identity = file_sha256(folder / "network.safetensors")
    write_adapter(folder / "best_lora.pt", AdapterFile(config, state, "tiny_16k", identity, targets))
    return folder
