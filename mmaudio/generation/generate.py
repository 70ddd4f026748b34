"""Audio generation for one video, or for a prompt alone.

    request = GenerationRequest(Path("dog.mp4"), "a dog barks", seed=3)
    waveform = generate(sampler, encoders, request)    # (samples,)

Up to 8 s are generated in one pass, more in windows that are denoised together (`long_audio`).

Legend: L text tokens, D feature width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.features.encoders import Encoders
from mmaudio.generation.conditions import Progress, VisualInput, WindowFeatures, encode_features
from mmaudio.generation.long_audio import LongRequest, PieceDecoder, sample_windows
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.prompt_table import TimedPrompt, check_prompts_end
from mmaudio.generation.sampler import Sampler
from mmaudio.generation.solver import check_method, progress_label
from mmaudio.generation.windows import WindowGrid, one_window, plan_rows, plan_windows
from mmaudio.media.picture import read_picture
from mmaudio.media.streams import StreamChoice
from mmaudio.media.video import check_not_truncated, find_video_end, probe
from mmaudio.model.spec import CLIP_SECONDS, SYNC_FPS, CodecSpec

MIN_SECONDS, MAX_SECONDS = 1.0, 3600.0
"""Durations of audio."""
MAX_ONE_PASS_SECONDS = 30.0
"""Longest duration that is generated in one pass, if that is asked for."""


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
    """Duration, 1 to 3600; the audio ends with the video if that is sooner. None: the whole video, 8 for a prompt."""
    seed: int = 0
    """Seed of the noise."""
    num_steps: int | None = None
    """Solver steps; None: the model's default."""
    guidance_scale: float | None = None
    """Scale of classifier-free guidance, 1 for none; None: the model's default."""
    method: str = "euler"
    """Solver: `euler`; `midpoint` and `heun`, of second order, twice the time per step; `dopri5` chooses its steps."""
    prompts: tuple[TimedPrompt, ...] = ()
    """Prompts that change over time, in place of `prompt`; they follow one another without a gap."""
    one_pass: bool = False
    """Generate more than 8 s in one pass of the network, which it was not trained for: 30 at most, 8 by default."""
    video_track: int | None = None
    """Number of the video's picture, from 0 on; None: the default one, else the longest that moves."""
    image: Path | None = None
    """A still in place of the video: what is in it is heard, and nothing moves."""
    mask_away_clip: bool = False
    """Take the timing from the video, and the meaning from the text alone."""

    @property
    def streams(self) -> StreamChoice:
        """What of the video is used."""
        return StreamChoice(video_track=self.video_track)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.video is None and self.image is None and not self.prompt and not self.prompts:
            raise ConfigError("neither a video nor a prompt: there is nothing to generate audio for")
        if self.image is not None and self.video is not None:
            raise ConfigError(f"both a video, {self.video}, and a picture, {self.image}: one of them is enough")
        if self.mask_away_clip and self.video is None:
            raise ConfigError("mask_away_clip takes the timing from a video, and there is none")
        if self.image is not None and self.start:
            raise ConfigError(f"start={self.start:g}: a picture has no other beginning than 0")
        if not 0 <= self.start < math.inf:
            raise ConfigError(f"start={self.start}: seconds of the video, from 0 on")
        longest = MAX_ONE_PASS_SECONDS if self.one_pass else MAX_SECONDS
        if self.seconds is not None and not MIN_SECONDS <= self.seconds <= longest:
            kind = " in one pass" if self.one_pass else ""
            raise ConfigError(f"seconds={self.seconds:g}: audio lasts {MIN_SECONDS:g} to {longest:g} s{kind}")
        if self.prompts and self.one_pass:
            raise ConfigError("prompts that change over time need windows; leave one_pass out")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: a number from 0 on")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise ConfigError(f"guidance_scale={self.guidance_scale}: a number from 1, for none, up; 4.5 is usual")
        if self.negative_prompt and self.guidance_scale is not None and self.guidance_scale <= 1:
            raise ConfigError(
                f"guidance_scale={self.guidance_scale:g} is no guidance, and a negative prompt works through guidance"
            )
        check_method(self.num_steps, self.method)

    @property
    def visual(self) -> VisualInput:
        """What is seen."""
        return VisualInput(self.video, self.start, self.image, self.streams, self.mask_away_clip)


@dataclass(frozen=True)
class ClipRange:
    """The range of a video that gets audio, from the request's start on."""

    seconds: float
    """Duration of the audio."""
    available: float | None
    """Seconds of picture from the request's start on; None without a video."""
    note: str = ""
    """On the choice among several pictures."""


def find_clip_range(request: GenerationRequest) -> ClipRange:
    """Find the duration of the audio.

    Raises DataError for a video that cannot be read, is truncated, or has less than a second from the start on, for
    prompts that end before or after the audio, and for a picture that is none.
    """
    if request.image is not None:
        read_picture(request.image)
    clip_range = _find_clip_range(request)
    if request.prompts:
        check_prompts_end(request.prompts, clip_range.seconds)
    return clip_range


def _find_clip_range(request: GenerationRequest) -> ClipRange:
    whole = MAX_SECONDS if request.video is not None and not request.one_pass else CLIP_SECONDS
    if request.video is None and request.prompts and request.prompts[-1].end < math.inf:
        whole = request.prompts[-1].end
    max_seconds = whole if request.seconds is None else request.seconds
    if request.video is None:
        return ClipRange(max_seconds, None)
    info = probe(request.video, request.streams)
    end = find_video_end(info)
    check_not_truncated(info, end)
    available = end - request.start
    if available < MIN_SECONDS - 1e-6:
        raise DataError(
            f"{request.video.name}: {max(available, 0):.2f} s of picture from {request.start:g} s on; "
            f"generation takes at least {MIN_SECONDS:g} s"
        )
    whole_frames = math.floor(available * SYNC_FPS + 1e-6) / SYNC_FPS
    return ClipRange(min(max_seconds, max(MIN_SECONDS, whole_frames)), available, info.describe_pictures())


def duration_warning(seconds: float) -> str:
    """The warning for one pass over more than the duration of training; empty for others."""
    if seconds <= CLIP_SECONDS:
        return ""
    return f"{seconds:g} s in one pass: models are trained on {CLIP_SECONDS:g} s, longer audio may be worse"


def all_prompts(request: GenerationRequest) -> tuple[str, ...]:
    """Every prompt of a request, the negative one too."""
    return (request.prompt, request.negative_prompt, *(prompt.text for prompt in request.prompts))


def encode_prompts(encoders: Encoders, prompts: Iterable[str]) -> dict[str, Tensor]:
    """Encode every distinct non-empty prompt: text features (1, L, D) by prompt."""
    return {prompt: encoders.encode_texts([prompt]) for prompt in dict.fromkeys(prompts) if prompt}


def plain(items: Sequence[Any], label: str) -> Iterable[Any]:
    """Yield `items` without any progress bar."""
    return items


def generate_samples(
    sampler: Sampler,
    encoders: Encoders,
    request: GenerationRequest,
    count: int = 1,
    text_features: Mapping[str, Tensor] | None = None,
    progress: Progress[Any] = plain,
    store: PartStore | None = None,
    condition_store: PartStore | None = None,
) -> Tensor:
    """Generate `count` waveforms (count, samples) together, at the codec's sample rate, in [-1, 1], on the CPU.

    Waveform i equals that of the seed `request.seed + i` alone, up to rounding (with dopri5, up to its tolerance). Sets
    the network's duration. `text_features`: of `encode_prompts`, where they exist already; the solver's steps, and the
    windows of longer audio, pass through `progress`; `store` holds the finished parts of longer audio, and
    `condition_store` a video's features. Raises DataError as `find_clip_range`, ConfigError for a count below 1,
    WeightsError for latents that are not finite.
    """
    if count < 1:
        raise ConfigError(f"samples={count}: at least 1")
    grid = plan_grid(sampler.spec.codec, request, find_clip_range(request).seconds)
    if text_features is None:
        text_features = encode_prompts(encoders, all_prompts(request))
    store = store or PartStore()
    features = encode_features(request.visual, grid, encoders, condition_store or store, progress)
    if len(grid.starts) == 1 and len(request.prompts) <= 1:
        return _generate_in_one_pass(sampler, request, grid, count, text_features, features, progress)
    return _generate_in_windows(sampler, request, grid, count, text_features, features, progress, store)


def plan_grid(codec: CodecSpec, request: GenerationRequest, seconds: float) -> WindowGrid:
    """The windows of `seconds` of audio: a single one where the request asks for one pass."""
    return one_window(codec, seconds) if request.one_pass else plan_windows(codec, seconds)


def _generate_in_one_pass(
    sampler: Sampler,
    request: GenerationRequest,
    grid: WindowGrid,
    count: int,
    text_features: Mapping[str, Tensor],
    features: WindowFeatures,
    progress: Progress[Any],
) -> Tensor:
    network = sampler.network
    network.set_duration(grid.window_seconds)
    clip_f, sync_f = features.get(0, network)
    prompt = request.prompts[0].text if request.prompts else request.prompt
    latents = sampler.sample_latents(
        clip_f,
        sync_f,
        text_features[prompt] if prompt else network.empty_text(1),
        sampler.draw_noise(range(request.seed, request.seed + count)),
        request.num_steps,
        request.guidance_scale,
        text_features[request.negative_prompt].to(sampler.device) if request.negative_prompt else None,
        request.method,
        lambda steps: progress(steps, progress_label(request.method)),
    )
    _check_finite(latents, sampler, request)
    return torch.cat([sampler.decode(latent[None]).cpu() for latent in latents])  # one by one: decoding takes memory


def _generate_in_windows(
    sampler: Sampler,
    request: GenerationRequest,
    grid: WindowGrid,
    count: int,
    text_features: Mapping[str, Tensor],
    features: WindowFeatures,
    progress: Progress[Any],
    store: PartStore,
) -> Tensor:
    sampler.network.set_duration(grid.window_seconds)
    prompts = request.prompts or (TimedPrompt(0.0, math.inf, request.prompt),)
    long_request = LongRequest(
        grid,
        plan_rows(grid, prompts, sampler.spec.codec),
        features,
        text_features,
        text_features[request.negative_prompt] if request.negative_prompt else None,
        sampler.spec.num_steps if request.num_steps is None else request.num_steps,
        sampler.spec.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        request.method,
    )
    noise = sampler.draw_noise(range(request.seed, request.seed + count), grid.num_tokens)
    latents = sample_windows(sampler, long_request, noise, store, progress)
    _check_finite(latents, sampler, request)
    decoders = [PieceDecoder(sampler, grid, latent) for latent in latents]
    return torch.stack([decoder.decode(store, f"audio_{i}", progress) for i, decoder in enumerate(decoders)])


def _check_finite(latents: Tensor, sampler: Sampler, request: GenerationRequest) -> None:
    if latents.isfinite().all():
        return
    guidance_scale = sampler.spec.guidance_scale if request.guidance_scale is None else request.guidance_scale
    raise WeightsError(
        f"{sampler.spec.name} with guidance {guidance_scale:g}: the audio is not finite. If guidance and the "
        "adapter's strength are usual ones, the weights are broken: take another checkpoint"
    )


def generate(sampler: Sampler, encoders: Encoders, request: GenerationRequest) -> Tensor:
    """Generate one waveform (samples,) at the codec's sample rate, in [-1, 1], on the CPU.

    Warns for one pass above the duration of training. Sets the network's duration. Raises as `generate_samples`.
    """
    if request.one_pass and request.seconds is not None and duration_warning(request.seconds):
        warnings.warn(duration_warning(request.seconds), stacklevel=2)
    return generate_samples(sampler, encoders, request)[0]
