"""Random networks, conditions and features of the released sizes; the same ones every time, nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor

from mmaudio.data.clips import Clip
from mmaudio.data.feature_set import Features, FeatureSet, build_feature_set
from mmaudio.model.networks import Conditions, MMAudio, build_network
from mmaudio.model.spec import CLIP_SECONDS, model_spec

PERTURBATION = 0.02
"""Standard deviation of what is added to all weights: layers that are initialised to zero would do nothing."""


def seeded_generator(seed: int) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def random_network(model: str) -> MMAudio:
    """The network of `model`, frozen, with random weights in every layer."""
    network, generator = build_network(model), seeded_generator(0)
    network.init_weights(generator)
    for parameter in network.parameters():
        parameter.data += PERTURBATION * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def random_conditions(network: MMAudio, batch_size: int) -> tuple[Conditions, Conditions]:
    """Projected conditions of random features, and the empty ones."""
    spec, size, generator = network.spec, network.lengths, seeded_generator(1)
    shapes = ((size.clip_tokens, spec.clip_dim), (size.sync_tokens, spec.sync_dim), (spec.text_tokens, spec.text_dim))
    device = network.latent_mean.device
    features = [torch.randn(batch_size, *shape, generator=generator).to(device) for shape in shapes]
    return network.preprocess_conditions(*features), network.empty_conditions(batch_size)


def random_features(model: str, clips: int) -> FeatureSet:
    """Features of `clips` clips of `model`, standard normal."""
    spec, generator = model_spec(model).network, seeded_generator(1)

    def draw_rows(tokens: int, width: int) -> Tensor:
        """Standard normal values (clips, tokens, width)."""
        return torch.randn(clips, tokens, width, generator=generator)

    features = Features(
        draw_rows(spec.latent_tokens, spec.latent_dim),
        draw_rows(spec.latent_tokens, spec.latent_dim).abs(),
        draw_rows(spec.clip_tokens, spec.clip_dim),
        draw_rows(spec.sync_tokens, spec.sync_dim),
        draw_rows(spec.text_tokens, spec.text_dim),
    )
    rows = [Clip(f"{i}", "video.mp4", 0.0, CLIP_SECONDS, "a sound", "train", 0.0, -20.0, 0.0) for i in range(clips)]
    return build_feature_set(features, rows, model)
