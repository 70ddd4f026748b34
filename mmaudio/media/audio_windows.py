"""Audio windows of a video in one decoding pass, in memory that grows with the windows and not with the video.

A resampled window equals the same window of the whole file resampled at once: the resampling kernel is finite, so every
chunk is resampled with as much of its neighbours as the kernel reaches.

Legend: T samples.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmaudio.media.audio import (
    PEAK,
    SINC_ROLLOFF,
    SINC_ZERO_CROSSINGS,
    AudioChunk,
    decode_waveform,
    make_resampler,
    native_sample_rate,
    pad_and_normalize,
)
from mmaudio.media.video import VideoInfo


@dataclass(frozen=True)
class AudioWindow:
    """One window at the file's own sample rate."""

    waveform: Tensor
    """(T,) float32, shorter than the window where the audio ends."""
    full_scale: Tensor
    """Where a channel is at full scale (T,), bool."""
    missing_seconds: float
    """Seconds of the window without audio."""


def slide_windows(chunks: Iterable[Tensor], windows: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
    """Cut `windows` (first sample and the one after the last, ascending) from consecutive chunks (..., T).

    Each is returned as soon as it has been read, shorter where the chunks end.
    """
    source = iter(chunks)
    buffer: deque[Tensor] = deque()
    position = end = 0  # of the buffer's first sample and of the one after its last
    for first, last in windows:
        while end < last and (chunk := next(source, None)) is not None:
            buffer.append(chunk)
            end += chunk.shape[-1]
            position += _drop_before(buffer, first - position)
        position += _drop_before(buffer, first - position)
        samples = torch.cat(list(buffer), dim=-1) if buffer else torch.zeros(0)
        yield samples[..., max(0, first - position) : max(0, last - position)]


def _drop_before(buffer: deque[Tensor], samples: int) -> int:
    """Drop whole chunks among the first `samples` samples, but never the last chunk; returns the samples dropped."""
    dropped = 0
    while len(buffer) > 1 and dropped + buffer[0].shape[-1] <= samples:
        dropped += buffer.popleft().shape[-1]
    return dropped


def read_native_windows(
    chunks: Iterable[AudioChunk], sample_rate: int, windows: Sequence[tuple[float, float]]
) -> Iterator[AudioWindow]:
    """The audio of `windows` (start and end in seconds, ascending), not resampled, with clipping and holes."""
    rows = (torch.stack([c.waveform, c.full_scale.float(), torch.full_like(c.waveform, c.is_audio)]) for c in chunks)
    ranges = [(round(start * sample_rate), round(end * sample_rate)) for start, end in windows]
    for (first, last), window in zip(ranges, slide_windows(rows, ranges), strict=True):
        waveform, full_scale, is_audio = window
        yield AudioWindow(waveform, full_scale > 0, (last - first - int(is_audio.count_nonzero())) / sample_rate)


def read_audio_windows(
    info: VideoInfo,
    starts: Sequence[float],
    sample_rate: int,
    samples: int,
    peak: float | None = PEAK,
    gains_db: Sequence[float | None] = (),
) -> Iterator[Tensor]:
    """The windows that begin at `starts` (ascending, seconds): (samples,) float32 at `sample_rate` Hz each.

    Every window is zero-padded past the file's end. With a gain in `gains_db` (decibels, one per window) it is
    amplified by that and at most as loud as `peak`; without, it is scaled to `peak` (see `pad_and_normalize`). Raises
    DataError where there is no audio.
    """
    chunks = resample_chunks(decode_waveform(info), native_sample_rate(info), sample_rate)
    first_samples = (round(start * sample_rate) for start in starts)
    windows = slide_windows(chunks, ((first, first + samples) for first in first_samples))
    for window, gain_db in zip(windows, gains_db or [None] * len(starts), strict=True):
        yield pad_and_normalize(window, samples, peak, gain_db)


def resample_chunks(chunks: Iterable[Tensor], orig_rate: int, new_rate: int) -> Iterator[Tensor]:
    """Resample consecutive chunks (T,) from `orig_rate` to `new_rate` Hz, as if they were resampled together."""
    if orig_rate == new_rate:
        yield from chunks
        return
    resampler = make_resampler(orig_rate, new_rate)
    common = math.gcd(orig_rate, new_rate)
    period, new_period = orig_rate // common, new_rate // common  # so many samples become so many
    reach = math.ceil(SINC_ZERO_CROSSINGS * period / (min(period, new_period) * SINC_ROLLOFF))  # samples, each way
    margin = math.ceil(reach / period) + 1  # the same in periods, and one to spare
    pending, finished = torch.zeros(0), 0  # the first `finished` periods of `pending` have been returned
    for chunk in chunks:
        pending = torch.cat([pending, chunk])
        ready = len(pending) // period - margin
        if (ready - finished) * period < orig_rate:
            continue
        yield resampler(pending)[finished * new_period : ready * new_period]
        dropped = max(0, ready - margin)
        pending, finished = pending[dropped * period :], ready - dropped
    yield resampler(pending)[finished * new_period :]
