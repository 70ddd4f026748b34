"""Agreement of a sound's onsets with sudden motion in the picture, without the original sound. No models.

The correlation of both envelopes (`av_offset`), at its best within the 0.16 s that count as in sync: 1 is full
agreement, 0 none. A picture without sudden motion, or a steady sound, gives 0.

W windows of a video, F frames of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.streams import DEFAULT_STREAMS, StreamChoice
from mmaudio.media.video import probe
from mmaudio.metrics.av_offset import (
    FRAME_SIZE,
    IN_SYNC_SECONDS,
    Array,
    cross_correlation,
    envelope_at_frames,
    motion_envelope,
)
from mmaudio.metrics.onsets import onset_envelope
from mmaudio.model.spec import SYNC_FPS as FPS
from mmaudio.model.spec import CodecSpec


def read_motion(
    video: Path, starts: Sequence[float], seconds: float, streams: StreamChoice = DEFAULT_STREAMS
) -> Iterator[Array]:
    """Motion envelopes (F,) of windows of `seconds` that begin at `starts`, in order of time."""
    return map(motion_envelope, read_grey_frames(video, starts, seconds, streams))


def read_grey_frames(
    video: Path, starts: Sequence[float], seconds: float, streams: StreamChoice = DEFAULT_STREAMS
) -> Iterator[Tensor]:
    """Small grey frames (F, FRAME_SIZE, FRAME_SIZE) of windows of `seconds` that begin at `starts` (ascending)."""
    grid = FrameGrid(FPS, round(seconds * FPS), _to_small_grey)
    for window in read_frame_windows(probe(video, streams), list(starts), [grid]):
        yield torch.stack(window.frames[0])


def _to_small_grey(frames: Tensor) -> Tensor:
    """RGB uint8 (1, 3, H, W) -> grey (1, FRAME_SIZE, FRAME_SIZE), 0 to 255."""
    grey = frames.float().mean(1)
    small: Tensor = vision.resize(grey, [FRAME_SIZE, FRAME_SIZE], antialias=True)
    return small


def motion_agreement(mel: Tensor, motion: Array, codec: CodecSpec) -> list[float]:
    """Agreement of each sound's onsets with the motion envelope (F,) of its window; `mel` (samples, bands, frames)."""
    return [
        in_sync_correlation(envelope_at_frames(onsets, codec.hop_length / codec.sample_rate, len(motion)), motion)
        for onsets in onset_envelope(mel, codec)
    ]


def in_sync_correlation(onsets: Array, motion: Array) -> float:
    """The best correlation of two envelopes (F,) at an offset that counts as in sync; -1 to 1."""
    correlations = cross_correlation(onsets, motion)
    center, tolerance = len(correlations) // 2, round(IN_SYNC_SECONDS * FPS)
    return float(correlations[center - tolerance : center + tolerance + 1].max())
