"""What one model does on a set of clips: its losses, its latents, and how its sound compares with the original's.

Everything random is drawn from a seed and the clip's id, so that neither the batch size nor the other clips matter, and
base and adapted are asked the same questions.

B batch, N latent tokens, C latent channels, M mel bands.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from einops import rearrange
from scipy import stats
from torch import Tensor

from mmaudio.data.empty_captions import with_empty_text
from mmaudio.data.feature_store import FeatureSet
from mmaudio.generation.sampler import Sampler
from mmaudio.metrics.diversity import diversity, duplicates, take_distances
from mmaudio.metrics.loudness import loudness, near_silent
from mmaudio.metrics.onsets import onset_envelope, onset_f1, onset_lag, onsets, precision_and_recall
from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.spectral import centroid_and_bandwidth, mel_l1, mel_l1_loud, stft_distance
from mmaudio.model.flow_matching import sample_posterior, velocity_loss
from mmaudio.model.spec import CodecSpec
from mmaudio.utils.progress import progress

GRID = 8
"""Times at which the velocity loss is taken."""


@dataclass(frozen=True)
class Draws:
    """How sounds are drawn: the same for every model that is compared."""

    seed: int = 0
    samples: int = 1
    """Takes per clip, each from noise of its own."""
    steps: int | None = None
    """Solver steps; None: the model's own."""
    guidance: float | None = None
    """None: the model's own."""
    batch: int = 8


@dataclass
class Sound:
    """One sound of a clip, original or generated, and what was measured of it."""

    values: dict[str, float] = field(default_factory=dict)
    """By metric; of several takes the mean."""
    onsets: list[float] = field(default_factory=list)
    """Seconds from the clip's start; of the first take."""


def clip_seed(seed: int, clip: str, what: str) -> int:
    """A seed for one clip and one purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{clip}/{what}".encode()).digest()[:8], "big")


def grid_times(count: int = GRID) -> list[float]:
    """The middle quantiles of the logit-normal distribution of training times: their mean loss estimates training's."""
    return [float(1 / (1 + math.exp(-stats.norm.ppf((i + 0.5) / count)))) for i in range(count)]


@torch.inference_mode()
def velocity_losses(sampler: Sampler, features: FeatureSet, draws: Draws, what: str) -> list[float]:
    """The training loss of each clip, all conditions present: the mean over `grid_times`, with noise of its own."""
    network, losses = sampler.network, []
    features = with_empty_text(features, network.empty_text(1)[0])
    for rows in progress(*_batches(len(features), draws.batch), what):
        ids = [features.ids[row] for row in rows]
        noise, spread = (sampler.noise([clip_seed(draws.seed, clip, part) for clip in ids]) for part in ("x0", "x1"))
        part = features[torch.tensor(rows)].map(lambda tensor: tensor.to(sampler.device))
        latent = network.normalize(sample_posterior(part.mean, part.std, spread))
        total = torch.zeros(len(rows), device=sampler.device)
        with sampler.autocast():
            conditions = network.preprocess_conditions(part.clip_features, part.sync_features, part.text_features)
            for time in grid_times():
                t = torch.full((len(rows),), time, device=sampler.device)
                total += velocity_loss(network, latent, conditions, t, noise)
        losses += (total / GRID).tolist()
    return losses


def sample_latents(sampler: Sampler, features: FeatureSet, draws: Draws, what: str) -> Tensor:
    """Generated latents of every clip and take on the codec's scale, (clips, samples, N, C) on the CPU."""
    features = with_empty_text(features, sampler.network.empty_text(1)[0])
    jobs = [(row, take) for row in range(len(features)) for take in range(draws.samples)]
    made = []
    for picked in progress(*_batches(len(jobs), draws.batch), what):
        part = features[torch.tensor([jobs[index][0] for index in picked])]
        noise = sampler.noise(
            [
                clip_seed(draws.seed, features.ids[row], f"take {take}")
                for row, take in (jobs[index] for index in picked)
            ]
        )
        conditions = (part.clip_features, part.sync_features, part.text_features)
        made.append(sampler.latents(*conditions, noise, draws.steps, draws.guidance).cpu())
    return rearrange(torch.cat(made), "(clips samples) n c -> clips samples n c", samples=draws.samples)


def sound_values(
    waveforms: Tensor, mels: Tensor, wave: Tensor, mel: Tensor, codec: CodecSpec, names: Collection[str] = METRICS
) -> list[Sound]:
    """Each of the sounds (B, samples), with their spectrograms (B, M, T), against the original's `wave` and `mel`.

    `names`: the metrics to compute.
    """
    wanted, columns = onsets(mel[None], codec)[0], _distances(waveforms, mels, wave, mel, codec, names)
    sounds = []
    for row, found in enumerate(onsets(mels, codec)):
        precision, recall = precision_and_recall(found, wanted)
        own = {"onset_f1": onset_f1(found, wanted), "onset_precision": precision, "onset_recall": recall}
        values = {name: float(column[row]) for name, column in columns.items()}
        sounds.append(Sound(values | {name: own[name] for name in own if name in names}, found.tolist()))
    return sounds


def _distances(
    waveforms: Tensor, mels: Tensor, wave: Tensor, mel: Tensor, codec: CodecSpec, names: Collection[str]
) -> dict[str, Tensor]:
    """What is computed for all sounds at once: a column (B,) by metric."""
    original, rate = mel.expand_as(mels), codec.rate

    def lag() -> Tensor:
        envelopes, own = onset_envelope(mels, codec), onset_envelope(mel[None], codec)[0]
        return onset_lag(envelopes, own, codec.hop / rate).abs()

    @cache
    def shapes() -> list[Tensor]:
        pairs = zip(*(centroid_and_bandwidth(part, rate) for part in (waveforms, wave[None])), strict=True)
        return [(own - wanted).abs() for own, wanted in pairs]

    columns: dict[str, Callable[[], Tensor]] = {
        "mel_l1_loud": lambda: mel_l1_loud(mels, original, codec.log_base),
        "mel_l1": lambda: mel_l1(mels, original),
        "stft_distance": lambda: stft_distance(waveforms, wave.expand_as(waveforms)),
        "loudness_difference": lambda: (loudness(waveforms, rate) - loudness(wave[None], rate)).abs(),
        "onset_lag": lag,
        "centroid_difference": lambda: shapes()[0],
        "bandwidth_difference": lambda: shapes()[1],
        "near_silent": lambda: near_silent(waveforms, wave, rate),
    }
    return {name: compute() for name, compute in columns.items() if name in names}


def between_takes(mels: Tensor, codec: CodecSpec) -> dict[str, float]:
    """How different the takes of a clip (takes, M, T) are; NaN for one take."""
    distances = take_distances(mels, codec.log_base)
    return {"duplicates": duplicates(distances), "diversity": diversity(distances)}


def averaged(sounds: Sequence[Sound]) -> Sound:
    """The takes of one clip as one: mean values, the first take's onsets."""
    names = sounds[0].values
    return Sound({name: math.fsum(s.values[name] for s in sounds) / len(sounds) for name in names}, sounds[0].onsets)


def _batches(count: int, size: int) -> tuple[Iterator[list[int]], int]:
    return (list(range(start, min(start + size, count))) for start in range(0, count, size)), -(-count // size)
