"""A feature set as MMAudio's own training writes it: tensordict memory maps and a table."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from mmaudio.model.spec import MODELS, compute_lengths


def write_memmap_set(folder, clips, model="small_16k", seed=0, label="label", **changed):
    """A set as the reference writes it: the memory map, and beside it the table."""
    spec, generator = MODELS[model], torch.Generator().manual_seed(seed)
    size, network = compute_lengths(spec.codec), spec.network
    shapes = {
        "mean": (size.latent_tokens, network.latent_dim),
        "std": (size.latent_tokens, network.latent_dim),
        "clip_features": (size.clip_tokens, network.clip_dim),
        "sync_features": (size.sync_tokens, network.sync_dim),
        "text_features": (network.text_tokens, network.text_dim),
    }
    tensors = {name: torch.randn(clips, *shape, generator=generator) for name, shape in shapes.items()} | changed
    TensorDict({name: tensor for name, tensor in tensors.items() if tensor is not None}).memmap_(folder)
    rows = "".join(f"{folder.name}{number}\ta sound, number {number}\n" for number in range(clips))
    folder.with_name(f"{folder.name}.tsv").write_text(f"id\t{label}\n{rows}")
    return tensors
