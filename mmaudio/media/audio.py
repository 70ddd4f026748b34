"""Audio of a video file: decoded to mono on the time axis of its first frame, and resampled.

Legend: C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchaudio.transforms import Resample

from mmaudio.errors import DataError
from mmaudio.media.video import VideoInfo, decode_frames, open_container, probe

PEAK = 0.95
"""Peak of a training window."""
SILENT_PEAK = 1e-6
"""A window whose peak is below this cannot be scaled."""
SINC_ZERO_CROSSINGS, SINC_ROLLOFF = 64, 0.9475937167399596
"""Half the width of the resampling sinc in zero crossings; its cut-off as a share of the lower Nyquist frequency."""
MAX_TIMESTAMP_ERROR = 0.05
"""Seconds that a time stamp may disagree with the samples before it; beyond, samples are missing or duplicated."""
MAX_HOLE_SECONDS = 6 * 3600.0
"""A time stamp that is further ahead is wrong, or what follows belongs to something else."""
FULL_SCALE = 0.999
"""A sample from this on is at full scale."""
MAX_CHUNK_SECONDS = 1
Samples = npt.NDArray[np.float32]


def read_audio(path: Path | str, info: VideoInfo | None = None) -> tuple[Tensor, int]:
    """The whole audio track as mono (T,) float32, and its sample rate in hertz; see `decode_waveform`.

    Raises DataError where there is no audio at all.
    """
    info = info or probe(path)
    return torch.cat(list(decode_waveform(info))), native_sample_rate(info)


def native_sample_rate(info: VideoInfo) -> int:
    """Sample rate of the audio track in hertz; DataError where there is no audio."""
    if info.audio_sample_rate is None:
        raise DataError(f"{info.path.name}: no sound")
    if not info.audio_sample_rate:
        raise DataError(f"{info.path.name}: its sound ({info.audio_codec}) cannot be decoded")
    return info.audio_sample_rate


def decode_waveform(info: VideoInfo) -> Iterator[Tensor]:
    """Decode the audio track, mixed to mono or one channel of it, in chunks (T,) float32 of at most a second.

    Sample 0 is the instant of the first frame. Where the audio begins later or has a hole, there are zeros; where its
    time stamps step back, the earlier samples stay. Packets that cannot be decoded are skipped. Raises DataError where
    there is no audio at all.
    """
    for chunk in decode_audio(info):
        yield chunk.waveform


@dataclass(frozen=True)
class AudioChunk:
    """Up to a second of consecutive audio."""

    waveform: Tensor
    """The mean of all channels, or the one that is used alone (T,), float32."""
    full_scale: Tensor
    """Where one of these channels is at full scale (T,), bool: the mean would hide it."""
    is_audio: bool
    """False for zeros that fill a hole."""
    channel_energies: Tensor
    """Sum of the squares of each of these channels (C,)."""


def decode_audio(info: VideoInfo) -> Iterator[AudioChunk]:
    """As `decode_waveform`, with clipping and holes. A hole longer than MAX_HOLE_SECONDS ends the audio."""
    sample_rate = native_sample_rate(info)
    for block in _join_blocks(_continuous_blocks(info, sample_rate), MAX_CHUNK_SECONDS * sample_rate):
        if isinstance(block, int):
            yield from _silence(block, sample_rate)
            continue
        for channels in torch.split(torch.from_numpy(block), MAX_CHUNK_SECONDS * sample_rate, dim=1):
            is_full_scale = (channels.abs() >= FULL_SCALE).any(0)
            yield AudioChunk(channels.mean(0), is_full_scale, True, channels.square().sum(1))


def _continuous_blocks(info: VideoInfo, sample_rate: int) -> Iterator[Samples | int]:
    """Samples that follow each other (C, T), from the instant of the first frame on; a number stands for a hole."""
    length, overlaps = 0, False
    for time, block in _decode_blocks(info, sample_rate):
        position = length if time is None else round((time - info.start_time) * sample_rate)
        if length == 0 and position < 0:
            block = block[:, -position:]
        elif length - position > (0 if overlaps else MAX_TIMESTAMP_ERROR * sample_rate):
            block = block[:, length - position :]  # a second time: it would delay all that follows
            overlaps = block.shape[1] == 0
        elif position - length > (MAX_TIMESTAMP_ERROR * sample_rate if length else 0):
            if position - length > MAX_HOLE_SECONDS * sample_rate:
                break
            yield position - length
            length = position
        yield block
        length += block.shape[1]
    if length == 0:
        raise DataError(f"{info.path.name}: its sound ({info.audio_codec}) cannot be decoded")


def _join_blocks(blocks: Iterable[Samples | int], samples: int) -> Iterator[Samples | int]:
    """Join blocks (C, T) to such of at least `samples`: a codec's are so short that each costs more than its samples.

    A block is shorter where a hole, another number of channels or the end follows.
    """
    pending: list[Samples] = []
    length = 0
    for block in blocks:
        if pending and (isinstance(block, int) or len(block) != len(pending[0])):
            yield np.concatenate(pending, axis=1)
            pending, length = [], 0
        if isinstance(block, int):
            yield block
            continue
        pending.append(block)
        length += block.shape[1]
        if length >= samples:
            yield np.concatenate(pending, axis=1)
            pending, length = [], 0
    if pending:
        yield np.concatenate(pending, axis=1)


def _silence(samples: int, sample_rate: int) -> Iterator[AudioChunk]:
    """Zeros that fill a hole of so many samples."""
    for first in range(0, samples, MAX_CHUNK_SECONDS * sample_rate):
        count = min(MAX_CHUNK_SECONDS * sample_rate, samples - first)
        yield AudioChunk(torch.zeros(count), torch.zeros(count, dtype=torch.bool), False, torch.zeros(0))


def resample_audio(waveform: Tensor, orig_rate: int, new_rate: int) -> Tensor:
    """Resample (..., T) from `orig_rate` to `new_rate` Hz by a Kaiser-windowed sinc.

    Returns (..., T * new_rate / orig_rate, rounded up).
    """
    if orig_rate == new_rate:
        return waveform
    resampled: Tensor = make_resampler(orig_rate, new_rate)(waveform)
    return resampled


def make_resampler(orig_rate: int, new_rate: int) -> Resample:
    """The resampler of `resample_audio`; its kernel reaches SINC_ZERO_CROSSINGS periods of the lower rate each way."""
    return Resample(
        orig_rate,
        new_rate,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=SINC_ZERO_CROSSINGS,
        rolloff=SINC_ROLLOFF,
        beta=14.769656459379492,
    )


def cut_audio_window(
    waveform: Tensor, sample_rate: int, start: float, samples: int, peak: float | None = PEAK
) -> Tensor:
    """Cut `samples` samples from `start` seconds on (samples,), zero-padded past the end, scaled to the peak `peak`.

    A silent window (peak below SILENT_PEAK) and `peak=None` leave the scale as it is.
    """
    first = round(start * sample_rate)
    return pad_and_normalize(waveform[first : first + samples], samples, peak)


def pad_and_normalize(window: Tensor, samples: int, peak: float | None = PEAK, gain_db: float | None = None) -> Tensor:
    """Zero-pad a window (T,) to `samples` and scale it to the peak `peak`, as `cut_audio_window` does.

    With `gain_db` it is amplified by that, and scaled to `peak` only where it would be louder. It is divided first and
    multiplied then, as in the reference code: another order rounds differently by one part in 10^8, which becomes
    0.0008 in the logarithm of a nearly silent mel band.
    """
    window = torch.nn.functional.pad(window, (0, samples - len(window)))
    if gain_db is not None:
        window = window * 10 ** (gain_db / 20)
    loudest = float(window.abs().max())
    if peak is None or loudest < (SILENT_PEAK if gain_db is None else peak):
        return window
    return window / loudest * peak


def _decode_blocks(info: VideoInfo, sample_rate: int) -> Iterator[tuple[float | None, Samples]]:
    """Time in seconds and samples (C, T) of every decoded frame, all channels or the one that is used.

    The sample format may change within the file.
    """
    with open_container(info.path) as container:
        resampler, audio_format = None, None
        for frame in decode_frames(container, container.streams.audio[info.audio_track]):
            time = None if frame.pts is None else float(frame.pts * frame.time_base)
            frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
            if audio_format != frame_format:
                audio_format = frame_format
                is_ready = (
                    frame_format[0] == "fltp" and frame.layout.nb_channels <= 2 and frame.sample_rate == sample_rate
                )
                resampler = None if is_ready else av.AudioResampler(format="flt", rate=sample_rate)
            for samples in [frame.to_ndarray()] if resampler is None else _interleaved(resampler, frame):
                yield time, samples if info.channel is None else samples[[min(info.channel, len(samples) - 1)]]


def _interleaved(resampler: av.AudioResampler, frame: Any) -> Iterator[Samples]:
    """The frame's samples (C, T), by way of one plane: PyAV crashes on eight."""
    for converted in resampler.resample(frame):
        yield converted.to_ndarray().reshape(-1, converted.layout.nb_channels).T
