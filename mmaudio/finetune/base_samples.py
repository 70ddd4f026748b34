"""The base model's own samples of generic captions, at which training holds the adapted model to the base.

The captions are those of `data.generic_captions` that no evaluation measures. The samples are made once, by text alone,
and stay beside the features.

R samples, N latent tokens, C latent channels, L text tokens, D text width.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.config import TrainConfig
from mmaudio.data.feature_set import FeatureSet
from mmaudio.data.generic_captions import build_text_set, training_captions
from mmaudio.features.encoders import ENCODER_COMPONENTS, load_encoders
from mmaudio.finetune.precision import autocast, compute_dtype
from mmaudio.model.flow_matching import integrate
from mmaudio.model.guidance import guided_velocity
from mmaudio.model.networks import MMAudio
from mmaudio.model.spec import model_spec
from mmaudio.utils.checksums import find_damage
from mmaudio.utils.files import atomic_write
from mmaudio.utils.progress import progress
from mmaudio.weights import store as weights

FOLDER = "base_samples"
BATCH_SIZE = 8
"""Samples that are made at once."""
SEED = 0
"""Of the first sample's noise."""


def hash_samples(config: TrainConfig, base_sha256: str, seconds: float) -> str:
    """What the samples follow from: the base's weights, the captions and the duration."""
    return hashlib.sha256(repr((base_sha256, training_captions(config.model), seconds)).encode()).hexdigest()[:16]


def samples_path(config: TrainConfig, base_sha256: str, seconds: float) -> Path:
    """The file of the samples: below the features, or below the results where the features are another program's."""
    folder = Path(config.features_dir if config.custom_finetune else config.output_dir)
    return folder / FOLDER / f"{hash_samples(config, base_sha256, seconds)}.pt"


def make_base_samples(network: MMAudio, config: TrainConfig, base_sha256: str, seconds: float) -> None:
    """Make the samples with the base `network`, of that duration, unless their file exists and is whole."""
    path = samples_path(config, base_sha256, seconds)
    if path.exists() and not find_damage(path):
        return
    device, captions = next(network.parameters()).device, training_captions(config.model)
    text_features, starts = encode_captions(config, captions, device), range(0, len(captions), BATCH_SIZE)
    latents = [
        sample_from_text(network, text_features[start : start + BATCH_SIZE].to(device), start, config)
        for start in progress(starts, len(starts), "the base's samples of generic captions")
    ]
    with atomic_write(path) as temporary:
        torch.save({"latents": torch.cat(latents).cpu(), "text_features": text_features}, temporary)


def encode_captions(config: TrainConfig, captions: list[str], device: torch.device) -> Tensor:
    """Text features of the captions (R, L, D), float32 on the CPU; WeightsError where CLIP is missing."""
    weights.fetch_files(config.model, (ENCODER_COMPONENTS["clip"],), config.weights_folder, config.offline)
    encoders = load_encoders(config.model, config.weights_folder, device, ("clip",))
    batches = [captions[start : start + BATCH_SIZE] for start in range(0, len(captions), BATCH_SIZE)]
    return torch.cat([encoders.encode_texts(batch) for batch in batches])


@torch.no_grad()
def sample_from_text(network: MMAudio, text_features: Tensor, first: int, config: TrainConfig) -> Tensor:
    """Latents (B, N, C) of text features (B, L, D), not normalised, with the model's own steps and guidance."""
    batch, device, spec = len(text_features), text_features.device, model_spec(config.model)
    shape = (batch, network.lengths.latent_tokens, network.spec.latent_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED + first)).to(device)
    with autocast(device, compute_dtype(device, config.amp)):
        empty = network.empty_clip(batch), network.empty_sync(batch)
        cond, uncond = network.preprocess_conditions(*empty, text_features), network.empty_conditions(batch)
        velocity = guided_velocity(network, cond, uncond, spec.guidance_scale)
        latents = integrate(velocity, noise, spec.num_steps)
    return network.unnormalize(latents.float())


def read_base_samples(network: MMAudio, config: TrainConfig, base_sha256: str, seconds: float) -> FeatureSet:
    """The samples as clips, whose video features are the learned empty ones."""
    tensors = torch.load(samples_path(config, base_sha256, seconds), weights_only=True)
    captions = training_captions(config.model)
    return build_text_set(network, tensors["text_features"], tensors["latents"], captions, seconds, config.model)
