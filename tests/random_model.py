"""A base model with random weights, and videos, for tests that need any model at all."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mmaudio.features.clip import build_clip
from mmaudio.features.desync import build_desync
from mmaudio.features.synchformer import build_synchformer
from mmaudio.features.vae import build_vae
from mmaudio.media.mux import write_video
from mmaudio.model.networks import build_network
from mmaudio.model.spec import model_spec

MODEL = "tiny_16k"


def write_random_weights(folder: Path, encoders: bool = True) -> None:
    """Write the weights files of MODEL with random values; without `encoders`, those that generate from features."""
    spec = model_spec(MODEL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, vae = build_network(MODEL), build_vae(spec.codec.name)
        for parameter in network.parameters():  # a fresh network's velocity is zero
            parameter.data += 0.02 * torch.randn(parameter.shape)
        parts = {"network": network, "vae": vae}
        if encoders:
            parts |= {"synchformer": build_synchformer(spec.sync.name), "clip": build_clip(spec.clip.name).model}
    network.latent_mean += 0.5
    vae.data_mean.fill_(-3.0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in parts.items():
        state = {key: value.contiguous() for key, value in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")


def add_sync_classifier(folder: Path) -> None:
    """Put Synchformer's audio branch and classifier with random values beside its visual branch in `folder`."""
    spec = model_spec(MODEL)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        modules = build_synchformer(spec.sync.name), build_desync(spec.sync.name)
        state = {
            key: (value + 0.1 * torch.randn(value.shape)).contiguous()  # a fresh classifier hears nothing
            for module in modules
            for key, value in module.state_dict().items()
        }
    save_file(state, folder / "synchformer.safetensors")


def write_noise_video(path: Path, seed: int, seconds: float) -> None:
    """Write a small video whose sound has bursts of noise."""
    rng = np.random.default_rng(seed)
    sound = 0.01 * rng.normal(size=round(seconds * 16_000))
    for start in rng.uniform(0, seconds - 0.2, 6):
        sound[int(start * 16_000) :][:800] += rng.uniform(-0.8, 0.8, 800)
    frames = (np.full((48, 64, 3), 40 + index % 100, np.uint8) for index in range(round(seconds * 25)))
    write_video(path, frames, 25, sound.clip(-1, 1), 16_000)
