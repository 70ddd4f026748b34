"""Samples while training of a user's own prompts and videos, beside the held-out clips.

Every video of `logging.sample_videos` is combined with every text of `logging.sample_prompts`; without prompts it has
the text beside it, and prompts without videos stand alone.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch

from mmaudio.config import TrainConfig
from mmaudio.data.captions import find_caption
from mmaudio.data.clips import Clip
from mmaudio.data.feature_set import Features, build_feature_set
from mmaudio.errors import ConfigError, DataError
from mmaudio.features.encoders import ENCODER_COMPONENTS, encode_video, load_encoders
from mmaudio.finetune.samples import SampleGenerator
from mmaudio.generation.sampler import Sampler
from mmaudio.media.video import check_not_truncated, find_video_end, probe
from mmaudio.model.spec import model_spec
from mmaudio.weights import store as weights

MAX_NAME = 40
"""Characters of a sample's name that tell what it is; a hash follows."""


def plan_sample_requests(config: TrainConfig, seconds: float) -> list[Clip]:
    """The samples as clips of `seconds`, with absolute paths.

    Raises DataError for a video that is missing or too short, ConfigError where there is nothing to hear.
    """
    logging = config.logging
    if (logging.sample_prompts or logging.sample_videos) and not logging.sample_every:
        raise ConfigError("logging.sample_every=0: no samples, and sample_prompts or sample_videos ask for some")
    if not logging.sample_videos and not all(prompt.strip() for prompt in logging.sample_prompts):
        raise ConfigError("logging.sample_prompts: an empty text without sample_videos; there is nothing to hear")
    videos = [Path(video).expanduser().absolute() for video in logging.sample_videos]
    for video in videos:
        check_sample_video(video, seconds)
    if not videos:
        return [_request_clip(None, prompt, seconds) for prompt in dict.fromkeys(logging.sample_prompts)]
    pairs = [(video, prompt) for video in videos for prompt in logging.sample_prompts or [find_caption(video, "")]]
    return [_request_clip(video, prompt, seconds) for video, prompt in dict.fromkeys(pairs)]


def check_sample_video(video: Path, seconds: float) -> None:
    """Raise DataError for a file that is no video, or whose picture is shorter than `seconds`."""
    try:
        info = probe(video)
        end = find_video_end(info)
        check_not_truncated(info, end)
    except DataError as error:
        raise DataError(f"logging.sample_videos: {error}") from error
    if end < seconds - 1e-6:
        raise DataError(
            f"logging.sample_videos: {video.name}: {end:.2f} s of picture; a sample while training lasts {seconds:g} s"
        )


def build_requested_samples(config: TrainConfig, sampler: Sampler, seconds: float) -> SampleGenerator | None:
    """Encode the user's videos and prompts once; None where there are none.

    The encoders are dropped afterwards. Raises WeightsError where they are missing, DataError as
    `plan_sample_requests`.
    """
    clips = plan_sample_requests(config, seconds)
    if not clips:
        return None
    names = ("clip", "sync") if config.logging.sample_videos else ("clip",)
    components = [ENCODER_COMPONENTS[name] for name in names]
    weights.fetch_files(config.model, components, config.weights_folder, config.offline)
    encoders = load_encoders(config.model, config.weights_folder, sampler.device, names)
    network = sampler.network
    empty = network.empty_clip(1).detach().cpu().float(), network.empty_sync(1).detach().cpu().float()
    visual = [encode_video(clip.video, encoders, seconds) if clip.video else empty for clip in clips]
    clip_f, sync_f = (torch.cat(tensors) for tensors in zip(*visual, strict=True))
    text_f = torch.cat([encoders.encode_texts([clip.caption]) for clip in clips])
    latents = torch.zeros(len(clips), network.lengths.latent_tokens, model_spec(config.model).network.latent_dim)
    features = build_feature_set(Features(latents, latents, clip_f, sync_f, text_f), clips, config.model)
    return SampleGenerator(sampler, features, Path("/"), has_truth=False)


def _request_clip(video: Path | None, prompt: str, seconds: float) -> Clip:
    path = "" if video is None else str(video)
    words = f"{'' if video is None else video.stem} {prompt}"
    name = re.sub(r"\W+", "_", words).strip("_")[:MAX_NAME]
    digest = hashlib.sha256(repr((path, prompt)).encode()).hexdigest()[:6]
    return Clip(f"own_{name}_{digest}", path, 0.0, seconds, prompt, "val", 0.0, 0.0, 0.0)
