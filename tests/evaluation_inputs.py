"""Inputs of an evaluation: features, an adapter, and the command's arguments."""

from __future__ import annotations

from pathlib import Path

import torch
from random_model import MODEL

from mmaudio.data.feature_set import Features
from mmaudio.generation.sampler import load_sampler
from mmaudio.lora import checkpoint as adapters
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora, expand_targets
from mmaudio.model.networks import build_network
from mmaudio.model.spec import compute_lengths, model_spec
from mmaudio.weights.store import file_sha256

SECONDS = 2.0
ENCODERS = {"codec": f"{MODEL}:0", "clip": f"{MODEL}:0", "sync": f"{MODEL}:0"}


def random_features(clips: int, generator: torch.Generator, seconds: float = SECONDS) -> Features:
    """Features of random numbers, in the shapes of MODEL."""
    spec = model_spec(MODEL)
    size, network = compute_lengths(spec.codec, seconds), spec.network

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(clips, *shape, generator=generator)

    return Features(
        draw(size.latent_tokens, network.latent_dim),
        draw(size.latent_tokens, network.latent_dim).abs() / 10,
        draw(size.clip_tokens, network.clip_dim),
        draw(size.sync_tokens, network.sync_dim),
        draw(network.text_tokens, network.text_dim),
    )


def write_random_adapter(path: Path, weights: Path) -> None:
    """Write an adapter file with random values for the model in the folder `weights`."""
    generator = torch.Generator().manual_seed(1)
    model = add_lora(load_sampler(MODEL, weights).network, LoRAConfig(rank=4), generator)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    adapters.write_adapter(
        path,
        adapters.AdapterFile(
            LoRAConfig(rank=4),
            adapter_state(model),
            MODEL,
            file_sha256(weights / "network.safetensors"),
            expand_targets(build_network(MODEL), LoRAConfig().target_modules),
            step=10,
            config={"learning_rate": 1e-3, "lora": {"rank": 4}},
            data={"train": {"clips": 2, "videos": ["four.mp4"], "ids": ["four_0.0", "four_2.0"]}},
        ),
    )


def evaluate_arguments(root: Path, *extra: str) -> list[str]:
    """The arguments of evaluate_lora.py for the files in `root`."""
    checkpoint = root / "exp" / "lora_checkpoints" / "best_lora.pt"
    return [
        *([] if "--lora_checkpoint" in extra else ["--lora_checkpoint", str(checkpoint)]),
        "--test_videos",
        str(root / "videos"),
        "--compare_original",
        "--clips",
        str(root / "clips.tsv"),
        "--features",
        str(root / "features"),
        "--weights",
        str(root / "weights"),
        "--steps",
        "2",
        "--device",
        "cpu",
        "--max_clips",
        "4",
        "--strengths",
        "0.5,1",
        *extra,
    ]
