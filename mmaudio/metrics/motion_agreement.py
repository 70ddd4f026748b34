"""Agreement of a sound's onsets with sudden motion in the picture, without the original sound. No models.

The F1 of the onsets against the peaks of the motion envelope (`av_offset`), within the 0.1 s of the onset F1: 1 is full
agreement, 0 none. The correlation of both envelopes follows loudness more than timing: of eight takes it chose ones no
better than the mean (`python -m benchmarks.best_of_samples`).

W windows of a video, F frames of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.streams import DEFAULT_STREAMS, StreamChoice
from mmaudio.media.video import probe
from mmaudio.metrics.av_offset import FRAME_SIZE, Array, motion_envelope
from mmaudio.metrics.onsets import Seconds, onset_f1, onset_times
from mmaudio.model.spec import SYNC_FPS as FPS
from mmaudio.model.spec import CodecSpec

PEAK_RADIUS = 2
"""Frames on both sides within which a peak of the motion is the highest."""
PEAK_SHARE = 0.1
"""Of the window's highest peak, below which motion is none."""


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
    from torchvision.transforms.v2 import functional as vision  # slow to import

    small: Tensor = vision.resize(grey, [FRAME_SIZE, FRAME_SIZE], antialias=True)
    return small


def motion_agreement(mel: Tensor, motion: Array, codec: CodecSpec) -> list[float]:
    """Agreement of each sound's onsets with the motion envelope (F,) of its window; `mel` (samples, bands, frames).

    NaN where the picture has no sudden motion.
    """
    events = motion_times(motion)
    return [onset_f1(times, events) if len(events) else math.nan for times in onset_times(mel, codec)]


def motion_times(motion: Array) -> Seconds:
    """Times in seconds of the peaks of a motion envelope (F,): the highest within 0.1 s, and a tenth of the highest."""
    if motion.max(initial=0.0) <= 0:
        return np.zeros(0)
    padded = np.pad(motion, PEAK_RADIUS)
    highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * PEAK_RADIUS + 1).max(1)
    frames = np.flatnonzero((motion >= highest) & (motion >= PEAK_SHARE * motion.max()))
    times: Seconds = (frames + 0.5) / FPS
    return times
