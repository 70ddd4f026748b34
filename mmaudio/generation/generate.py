"""Sounds for one video, or for a prompt alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.features.encoders import Encoders, encode_video
from mmaudio.generation.sampler import Sampler
from mmaudio.media.video import check_whole, picture_end, probe
from mmaudio.model.flow_matching import check_solver
from mmaudio.model.spec import SECONDS, SYNC_FPS

SHORTEST, LONGEST = 1.0, 30.0
"""Seconds of a sound that is made in one pass."""


@dataclass(frozen=True)
class Wish:
    """What is to be heard; ConfigError for what makes no sense."""

    video: Path | None
    """None: the prompt alone says it."""
    prompt: str = ""
    negative_prompt: str = ""
    """What is not to be heard: it stands in the place of no text in guidance."""
    start: float = 0.0
    """Seconds of the video at which the sound begins."""
    seconds: float | None = None
    """Duration, 1 to 30; the sound ends with the video where that is sooner. None: 8, what models are trained on."""
    seed: int = 0
    """What the noise is drawn from."""
    steps: int | None = None
    """Solver steps; None: the model's own."""
    guidance: float | None = None
    """Strength of classifier-free guidance, 1 for none; None: the model's own."""
    method: str = "euler"
    """The solver: `euler`, or `midpoint`, of second order, which takes twice the time a step."""

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.video is None and not self.prompt:
            raise ConfigError("neither a video nor a prompt: there is nothing to make a sound for")
        if not 0 <= self.start < math.inf:
            raise ConfigError(f"start={self.start}: seconds of the video, from 0 on")
        if self.seconds is not None and not SHORTEST <= self.seconds <= LONGEST:
            raise ConfigError(f"seconds={self.seconds:g}: a sound lasts {SHORTEST:g} to {LONGEST:g} s; 8 is usual")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: a number from 0 on")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise ConfigError(f"guidance={self.guidance}: a number from 1, for none, up; 4.5 is usual")
        if self.negative_prompt and self.guidance is not None and self.guidance <= 1:
            raise ConfigError(f"guidance={self.guidance:g} is none, and a negative prompt acts through guidance alone")
        check_solver(self.steps, self.method)


@dataclass(frozen=True)
class Span:
    """The part of a video that gets a sound."""

    seconds: float
    left: float | None
    """Seconds that the picture has from the wish's start on; None without a video."""


def span(wish: Wish) -> Span:
    """How long the sound lasts; DataError where the video cannot be used, is cut off, or has not a second left."""
    limit = SECONDS if wish.seconds is None else wish.seconds
    if wish.video is None:
        return Span(limit, None)
    info = probe(wish.video)
    end = picture_end(info)
    check_whole(info, end)
    left = end - wish.start
    if left < SHORTEST - 1e-6:
        raise DataError(
            f"{wish.video.name}: {max(left, 0):.2f} s of picture from {wish.start:g} s on; "
            f"a sound takes at least {SHORTEST:g} s"
        )
    return Span(min(limit, max(SHORTEST, math.floor(left * SYNC_FPS + 1e-6) / SYNC_FPS)), left)


def caution(seconds: float) -> str:
    """What to say of a duration beyond training's; empty where it is not."""
    return f"{seconds:g} s: models are trained on {SECONDS:g} s, longer sounds may be worse" * (seconds > SECONDS)


def encode_prompts(encoders: Encoders, prompts: Iterable[str]) -> dict[str, Tensor]:
    """Text features (1, L, D) of every different prompt that is not empty."""
    return {prompt: encoders.texts([prompt]) for prompt in dict.fromkeys(prompts) if prompt}


def generate_samples(
    sampler: Sampler,
    encoders: Encoders,
    wish: Wish,
    count: int = 1,
    texts: Mapping[str, Tensor] | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """`count` sounds (count, samples) at the codec's rate, within [-1, 1], on the CPU, in one batch.

    Number i is what the seed `wish.seed + i` alone gives, up to rounding. Sets the network's duration. `texts` holds
    the prompts' features where they are known already; the solver's steps pass through `progress`. Raises DataError as
    `span` does, ConfigError for a count below 1, WeightsError where the network's latents are not finite.
    """
    if count < 1:
        raise ConfigError(f"samples={count}: at least 1")
    seconds, network = span(wish).seconds, sampler.network
    network.set_duration(seconds)
    if texts is None:
        texts = encode_prompts(encoders, (wish.prompt, wish.negative_prompt))
    if wish.video is None:
        clip_f, sync_f = network.empty_clip(1), network.empty_sync(1)
    else:
        clip_f, sync_f = encode_video(wish.video, encoders, seconds, wish.start)
    text_f = texts[wish.prompt] if wish.prompt else network.empty_text(1)
    negative = texts[wish.negative_prompt].to(sampler.device) if wish.negative_prompt else None
    noise = sampler.noise(range(wish.seed, wish.seed + count))
    latents = sampler.latents(clip_f, sync_f, text_f, noise, wish.steps, wish.guidance, negative, wish.method, progress)
    if not latents.isfinite().all():
        guidance = sampler.spec.guidance if wish.guidance is None else wish.guidance
        raise WeightsError(
            f"{sampler.spec.name} with guidance {guidance:g}: the sound is not finite. Where the guidance and the "
            "adapter's strength are usual ones the weights are broken: take another checkpoint"
        )
    return torch.cat([sampler.decode(latent[None]).cpu() for latent in latents])  # one by one: decoding takes memory


def generate(sampler: Sampler, encoders: Encoders, wish: Wish) -> Tensor:
    """The sound (samples,) at the codec's rate, within [-1, 1], on the CPU; a warning for a duration beyond training's.

    Sets the network's duration. Raises DataError for a video that cannot be used.
    """
    if wish.seconds is not None and caution(wish.seconds):
        warnings.warn(caution(wish.seconds), stacklevel=2)
    return generate_samples(sampler, encoders, wish)[0]
