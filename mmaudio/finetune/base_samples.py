"""The base model's own samples of generic captions, at which training holds the adapted model to the base.

The captions are those of `data.generic_captions` that no evaluation measures, unless others are passed. The samples are
made once, by text alone, and stay beside the features; for `tiny_16k` and 8 s their latents ship with the model. In
training half of the draws have the video of a clip as well.

R samples, N latent tokens, C latent channels, L text tokens, D text width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmaudio.config import TrainConfig
from mmaudio.data.feature_set import AnyFeatureSet, Features, FeatureSet, build_feature_set
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


def hash_samples(config: TrainConfig, base_sha256: str, seconds: float, captions: Sequence[str] | None = None) -> str:
    """What the samples follow from: the base's weights, the captions and the duration."""
    captions = list(captions or training_captions(config.model))
    return hashlib.sha256(repr((base_sha256, captions, seconds)).encode()).hexdigest()[:16]


def samples_path(config: TrainConfig, base_sha256: str, seconds: float, captions: Sequence[str] | None = None) -> Path:
    """The file of the samples: below the features, or below the results where the features are another program's."""
    folder = Path(config.features_dir if config.custom_finetune else config.output_dir)
    return folder / FOLDER / f"{hash_samples(config, base_sha256, seconds, captions)}.pt"


def make_base_samples(
    network: MMAudio, config: TrainConfig, base_sha256: str, seconds: float, captions: Sequence[str] | None = None
) -> None:
    """Make the samples with the base `network`, of that duration, unless their file exists and is whole."""
    path = samples_path(config, base_sha256, seconds, captions)
    if path.exists() and not find_damage(path):
        return
    device, captions = next(network.parameters()).device, captions or training_captions(config.model)
    text_features = encode_captions(config, captions, device)
    latents = read_shipped_latents(config.model, hash_samples(config, base_sha256, seconds, captions))
    if latents is None:
        latents = sample_captions(network, text_features, config)
    with atomic_write(path) as temporary:
        torch.save({"latents": latents, "text_features": text_features}, temporary)


def read_shipped_latents(model: str, samples_hash: str) -> Tensor | None:
    """Latents (R, N, C), float32, that ship with a model; None where there are none of that hash."""
    path = weights.ASSETS / model / weights.BASE_SAMPLES_FILE
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        is_current = file.metadata()["hash"] == samples_hash
        return file.get_tensor("latents") * file.get_tensor("step") if is_current else None


def ship_latents(config: TrainConfig, base_sha256: str, seconds: float) -> Path:
    """Write the latents of the samples that were made to the model's assets, in 8 bits by channel: the file's path."""
    latents = torch.load(samples_path(config, base_sha256, seconds), weights_only=True)["latents"]
    path, step = weights.ASSETS / config.model / weights.BASE_SAMPLES_FILE, latents.abs().amax((0, 1)) / 127
    with atomic_write(path) as temporary:
        tensors = {"latents": (latents / step).round().to(torch.int8), "step": step}
        save_file(tensors, temporary, {"hash": hash_samples(config, base_sha256, seconds)})
    return path


def sample_captions(network: MMAudio, text_features: Tensor, config: TrainConfig) -> Tensor:
    """Latents (R, N, C) of text features (R, L, D), on the CPU, sampled with the base `network`."""
    device, starts = next(network.parameters()).device, range(0, len(text_features), BATCH_SIZE)
    latents = [
        sample_from_text(network, text_features[start : start + BATCH_SIZE].to(device), start, config)
        for start in progress(starts, len(starts), "the base's samples of generic captions")
    ]
    return torch.cat(latents).cpu()


def encode_captions(config: TrainConfig, captions: Sequence[str], device: torch.device) -> Tensor:
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


def pair_with_videos(samples: FeatureSet, clips: AnyFeatureSet, seed: int) -> FeatureSet:
    """The samples, each with the video features of a random one of the `clips`: foreign text for a known video.

    Without them the adapter is held to the base where there is no video, and changes most where there is one.
    """
    rows = torch.randint(len(clips), (len(samples),), generator=torch.Generator().manual_seed(seed))
    videos = clips.select(rows)
    features = Features(samples.mean, samples.std, videos.clip_features, videos.sync_features, samples.text_features)
    return build_feature_set(features, samples.clips, samples.model)


def read_base_samples(
    network: MMAudio, config: TrainConfig, base_sha256: str, seconds: float, captions: Sequence[str] | None = None
) -> FeatureSet:
    """The samples as clips, whose video features are the learned empty ones."""
    tensors = torch.load(samples_path(config, base_sha256, seconds, captions), weights_only=True)
    captions = captions or training_captions(config.model)
    return build_text_set(network, tensors["text_features"], tensors["latents"], captions, seconds, config.model)
