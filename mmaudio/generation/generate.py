"""Audio generation for one video, or for a prompt alone.

    request = GenerationRequest(Path("dog.mp4"), "a dog barks", seed=3)
    waveform = generate(sampler, encoders, request)    # (samples,)

Legend: L text tokens, D feature width.
"""

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
from mmaudio.media.video import check_not_truncated, find_video_end, probe
from mmaudio.model.flow_matching import check_solver
from mmaudio.model.spec import CLIP_SECONDS, SYNC_FPS

MIN_SECONDS, MAX_SECONDS = 1.0, 30.0
"""Durations that are generated in one pass."""


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate and how to sample it; ConfigError for invalid values."""

    video: Path | None
    """None: text to audio."""
    prompt: str = ""
    negative_prompt: str = ""
    """Replaces the empty text in guidance."""
    start: float = 0.0
    """Seconds of the video at which the audio begins."""
    seconds: float | None = None
    """Duration, 1 to 30; the audio ends with the video if that is sooner. None: 8, the duration of training."""
    seed: int = 0
    """Seed of the noise."""
    num_steps: int | None = None
    """Solver steps; None: the model's default."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance, 1 for none; None: the model's default."""
    method: str = "euler"
    """Solver: `euler`, or `midpoint`, which is of second order and takes twice the time per step."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.video is None and not self.prompt:
            raise ConfigError("neither a video nor a prompt: there is nothing to generate audio for")
        if not 0 <= self.start < math.inf:
            raise ConfigError(f"start={self.start}: seconds of the video, from 0 on")
        if self.seconds is not None and not MIN_SECONDS <= self.seconds <= MAX_SECONDS:
            raise ConfigError(f"seconds={self.seconds:g}: audio lasts {MIN_SECONDS:g} to {MAX_SECONDS:g} s; 8 is usual")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: a number from 0 on")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise ConfigError(f"guidance_scale={self.guidance_scale}: a number from 1, for none, up; 4.5 is usual")
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise ConfigError(
                f"guidance_scale={self.guidance_scale:g} is no guidance, and a negative prompt works through guidance"
            )
        check_solver(self.num_steps, self.method)


@dataclass(frozen=True)
class ClipRange:
    """The range of a video that gets audio, from the request's start on."""

    seconds: float
    """Duration of the audio."""
    available: float | None
    """Seconds of picture from the request's start on; None without a video."""


def find_clip_range(request: GenerationRequest) -> ClipRange:
    """Find the duration of the audio.

    Raises DataError for a video that cannot be read, is truncated, or has less than a second from the start on.
    """
    max_seconds = CLIP_SECONDS if request.seconds is None else request.seconds
    if request.video is None:
        return ClipRange(max_seconds, None)
    info = probe(request.video)
    end = find_video_end(info)
    check_not_truncated(info, end)
    available = end - request.start
    if available < MIN_SECONDS - 1e-6:
        raise DataError(
            f"{request.video.name}: {max(available, 0):.2f} s of picture from {request.start:g} s on; "
            f"generation takes at least {MIN_SECONDS:g} s"
        )
    whole_frames = math.floor(available * SYNC_FPS + 1e-6) / SYNC_FPS
    return ClipRange(min(max_seconds, max(MIN_SECONDS, whole_frames)), available)


def duration_warning(seconds: float) -> str:
    """The warning for a duration above that of training; empty for others."""
    if seconds <= CLIP_SECONDS:
        return ""
    return f"{seconds:g} s: models are trained on {CLIP_SECONDS:g} s, longer audio may be worse"


def encode_prompts(encoders: Encoders, prompts: Iterable[str]) -> dict[str, Tensor]:
    """Encode every distinct non-empty prompt: text features (1, L, D) by prompt."""
    return {prompt: encoders.encode_texts([prompt]) for prompt in dict.fromkeys(prompts) if prompt}


def generate_samples(
    sampler: Sampler,
    encoders: Encoders,
    request: GenerationRequest,
    count: int = 1,
    text_features: Mapping[str, Tensor] | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """Generate `count` waveforms (count, samples) in one batch, at the codec's sample rate, in [-1, 1], on the CPU.

    Waveform i equals that of the seed `request.seed + i` alone, up to rounding. Sets the network's duration.
    `text_features`: of `encode_prompts`, where they exist already; the solver's steps pass through `progress`. Raises
    DataError as `find_clip_range`, ConfigError for a count below 1, WeightsError for latents that are not finite.
    """
    if count < 1:
        raise ConfigError(f"samples={count}: at least 1")
    seconds, network = find_clip_range(request).seconds, sampler.network
    network.set_duration(seconds)
    if text_features is None:
        text_features = encode_prompts(encoders, (request.prompt, request.negative_prompt))
    if request.video is None:
        clip_f, sync_f = network.empty_clip(1), network.empty_sync(1)
    else:
        clip_f, sync_f = encode_video(request.video, encoders, seconds, request.start)
    text_f = text_features[request.prompt] if request.prompt else network.empty_text(1)
    negative_f = text_features[request.negative_prompt].to(sampler.device) if request.negative_prompt else None
    latents = sampler.sample_latents(
        clip_f,
        sync_f,
        text_f,
        sampler.draw_noise(range(request.seed, request.seed + count)),
        request.num_steps,
        request.guidance_scale,
        negative_f,
        request.method,
        progress,
    )
    if not latents.isfinite().all():
        guidance_scale = sampler.spec.guidance_scale if request.guidance_scale is None else request.guidance_scale
        raise WeightsError(
            f"{sampler.spec.name} with guidance {guidance_scale:g}: the audio is not finite. If guidance and the "
            "adapter's strength are usual ones, the weights are broken: take another checkpoint"
        )
    return torch.cat([sampler.decode(latent[None]).cpu() for latent in latents])  # one by one: decoding takes memory


def generate(sampler: Sampler, encoders: Encoders, request: GenerationRequest) -> Tensor:
    """Generate one waveform (samples,) at the codec's sample rate, in [-1, 1], on the CPU.

    Warns for a duration above that of training. Sets the network's duration. Raises as `generate_samples`.
    """
    if request.seconds is not None and duration_warning(request.seconds):
        warnings.warn(duration_warning(request.seconds), stacklevel=2)
    return generate_samples(sampler, encoders, request)[0]
