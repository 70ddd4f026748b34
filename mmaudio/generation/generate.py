"""One sound for one video, or for a prompt alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mmaudio.data.video import picture_end, probe
from mmaudio.errors import ConfigError, DataError
from mmaudio.features.encoders import Encoders, encode_video
from mmaudio.generation.sampler import Sampler
from mmaudio.model.spec import SECONDS, SEGMENT_FRAMES, SYNC_FPS

SHORTEST = SEGMENT_FRAMES / SYNC_FPS
"""Seconds of one Synchformer segment."""


@dataclass(frozen=True)
class Wish:
    """What is to be heard."""

    video: Path | None
    """None: the prompt alone says it."""
    prompt: str = ""
    negative_prompt: str = ""
    """What is not to be heard."""
    start: float = 0.0
    """Seconds of the video at which the sound begins."""
    seconds: float | None = None
    """Duration; None: to the video's end, at most the 8 s that models are trained on."""
    seed: int = 0
    steps: int | None = None
    """Solver steps; None: the model's own."""
    guidance: float | None = None
    """Strength of classifier-free guidance; None: the model's own."""

    def __post_init__(self) -> None:
        if self.video is None and not self.prompt:
            raise ConfigError("neither a video nor a prompt: there is nothing to make a sound for")
        if self.start < 0:
            raise ConfigError(f"start={self.start}: a video begins at 0")


def duration(wish: Wish) -> float:
    """Seconds that the sound lasts; DataError where the video has too little from the start on."""
    if wish.seconds is not None or wish.video is None:
        return SECONDS if wish.seconds is None else wish.seconds
    left = picture_end(probe(wish.video)) - wish.start
    if left < SHORTEST:
        raise DataError(
            f"{wish.video.name}: {max(left, 0):.2f} s from {wish.start:g} s on; at least {SHORTEST} s are needed"
        )
    return min(SECONDS, math.floor(left * SYNC_FPS + 1e-6) / SYNC_FPS)


def generate(sampler: Sampler, encoders: Encoders, wish: Wish) -> Tensor:
    """The sound (samples,) at the codec's rate, within [-1, 1], on the CPU. Sets the network's duration.

    Raises DataError for a video that cannot be read or is too short, ConfigError for a duration that is too short.
    """
    seconds, network = duration(wish), sampler.network
    network.set_duration(seconds)
    if wish.video is None:
        clip_f, sync_f = network.empty_clip(1), network.empty_sync(1)
    else:
        clip_f, sync_f = encode_video(wish.video, encoders, seconds, wish.start)
    text_f = encoders.texts([wish.prompt]) if wish.prompt else network.empty_text(1)
    negative = encoders.texts([wish.negative_prompt]).to(sampler.device) if wish.negative_prompt else None
    noise = sampler.noise([wish.seed])
    latents = sampler.latents(clip_f, sync_f, text_f, noise, wish.steps, wish.guidance, negative)
    return sampler.decode(latents)[0].cpu()
