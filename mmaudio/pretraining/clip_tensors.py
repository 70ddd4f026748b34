"""Reading a clip back from its file, the way the product reads a user's video."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mmaudio.media.audio import audio_window, read_audio, resample_audio
from mmaudio.media.frame_windows import Grid, read_windows
from mmaudio.media.video import probe
from mmaudio.model.spec import CLIP_FPS, MODELS, SYNC_FPS, lengths


class ClipTensors(NamedTuple):
    """One clip as the encoders take it."""

    frames: Tensor
    """(200, 64, 64, 3) uint8 at 25 fps."""
    stills: Tensor
    """(64, 64, 64, 3) uint8 at 8 fps."""
    audio: Tensor
    """(128000,) float16, peak 0.95."""


def read_clip(path: Path) -> ClipTensors:
    """The first 8 s of a video file; raises DataError where it holds less."""
    model = MODELS["tiny_16k"]
    size = lengths(model.codec)

    def resize(frames: Tensor) -> Tensor:
        side = [model.sync.size] * 2
        small: Tensor = vision.resize(frames, side, interpolation=InterpolationMode.BICUBIC, antialias=True)
        return small

    info = probe(path)
    grids = (Grid(SYNC_FPS, size.sync_frames, resize), Grid(CLIP_FPS, size.clip, resize))
    window = next(read_windows(info, [0.0], grids))
    waveform, rate = read_audio(path, info)
    sound = audio_window(resample_audio(waveform, rate, model.codec.rate), model.codec.rate, 0.0, size.samples)
    frames, stills = (rearrange(torch.stack(rows), "t c h w -> t h w c").contiguous() for rows in window.frames)
    return ClipTensors(frames, stills, sound.half())
