"""Frames, stills and audio of a clip, read from its video file the way the product reads a user's."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mmaudio.media.audio import cut_audio_window, read_audio, resample_audio
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.video import probe
from mmaudio.model.spec import CLIP_FPS, MODELS, SYNC_FPS, compute_lengths


class ClipTensors(NamedTuple):
    """One clip for the encoders; the fields are keys of a shard's file."""

    frames: Tensor
    """(200, 64, 64, 3) uint8 at 25 fps."""
    stills: Tensor
    """(64, 64, 64, 3) uint8 at 8 fps."""
    audio: Tensor
    """(128000,) float16, peak 0.95."""


def read_clip(path: Path) -> ClipTensors:
    """The first 8 s of a video file; raises DataError where it holds less."""
    model = MODELS["tiny_16k"]
    size, sample_rate = compute_lengths(model.codec), model.codec.sample_rate
    image_size = [model.sync.image_size] * 2

    def resize(frames: Tensor) -> Tensor:
        """Frames uint8 (V, 3, H, W) at the encoders' size."""
        resized: Tensor = vision.resize(frames, image_size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return resized

    info = probe(path)
    grids = (FrameGrid(SYNC_FPS, size.sync_frames, resize), FrameGrid(CLIP_FPS, size.clip_tokens, resize))
    window = next(read_frame_windows(info, [0.0], grids))
    waveform, native_rate = read_audio(path, info)
    waveform = resample_audio(waveform, native_rate, sample_rate)
    audio = cut_audio_window(waveform, sample_rate, 0.0, size.audio_samples)
    frames, stills = (rearrange(torch.stack(rows), "t c h w -> t h w c").contiguous() for rows in window.frames)
    return ClipTensors(frames, stills, audio.half())
