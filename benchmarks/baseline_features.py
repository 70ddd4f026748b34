"""Clip preprocessing written plainly: one clip at a time, with torchvision's transforms."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from mmaudio.features import clip
from mmaudio.media.audio import read_audio, resample_audio
from mmaudio.media.frame_times import frame_time
from mmaudio.media.streams import video_stream
from mmaudio.media.video import VideoInfo, decode_frames, open_container
from mmaudio.model.spec import CLIP_FPS, CLIP_SECONDS, SYNC_FPS, ModelSpec, compute_lengths

BICUBIC = v2.InterpolationMode.BICUBIC
CLIP_TRANSFORM = v2.Compose(
    [
        v2.Resize((384, 384), interpolation=BICUBIC, antialias=True),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(clip.MEAN, clip.STD),
    ]
)
SYNC_TRANSFORM = v2.Compose(
    [
        v2.Resize(224, interpolation=BICUBIC, antialias=True),
        v2.CenterCrop(224),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
)
TIME_TOLERANCE = 1e-5
"""Frames by which a frame may be early."""


def read_plain_clip(info: VideoInfo, start: float, spec: ModelSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Seek, decode and transform the 8 s from `start` on: CLIP's frames, Synchformer's frames, the waveform."""
    stills: list[Tensor] = []
    frames: list[Tensor] = []
    size = compute_lengths(spec.codec)
    with open_container(info.path) as container:
        stream = video_stream(container, info.path)
        container.seek(int((start + info.start_time) / stream.time_base), stream=stream)
        for frame in decode_frames(container, stream):
            time = frame_time(frame) - info.start_time - start
            if time < -1e-6:
                continue
            rgb = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            if len(stills) < size.clip_tokens and time * CLIP_FPS >= len(stills) - TIME_TOLERANCE:
                stills.append(rgb)
            if len(frames) < size.sync_frames and time * SYNC_FPS >= len(frames) - TIME_TOLERANCE:
                frames.append(rgb)
            if len(stills) == size.clip_tokens and len(frames) == size.sync_frames:
                break
    waveform, native_rate = read_audio(info.path, info)
    waveform = waveform[int(start * native_rate) : int((start + CLIP_SECONDS) * native_rate)]
    audio = resample_audio(waveform, native_rate, spec.codec.sample_rate)
    return CLIP_TRANSFORM(torch.stack(stills)), SYNC_TRANSFORM(torch.stack(frames)), audio
