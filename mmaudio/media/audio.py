"""The sound of a video: read as mono on the picture's time axis, resampled, cut into windows.

Legend: C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchaudio.transforms import Resample

from mmaudio.errors import DataError
from mmaudio.media.video import VideoInfo, decoded, opened, probe

PEAK = 0.95
"""Peak of a training window."""
SILENT_PEAK = 1e-6
"""A window whose peak is below this cannot be scaled."""
ZEROS, ROLLOFF = 64, 0.9475937167399596
"""Half the width of resampling's sinc, in its zero crossings, and its cut-off as a share of the lower rate's half."""
JUMP = 0.05
"""Seconds that a time stamp may disagree with the samples before it; beyond, samples are missing or there twice."""
LONGEST_HOLE = 600.0
"""Seconds. A time stamp that is further ahead is wrong, or what follows belongs to something else."""
FULL_SCALE = 0.999
"""A sample from this on is at full scale."""


def read_audio(path: Path | str, info: VideoInfo | None = None) -> tuple[Tensor, int]:
    """The mean of all channels of the chosen sound track (T,) float32 and its rate in hertz, as `sound_pieces` has it.

    Raises DataError where there is no sound at all.
    """
    info = info or probe(path)
    pieces = list(sound_pieces(info))
    return torch.cat(pieces), sound_rate(info)


def sound_rate(info: VideoInfo) -> int:
    """Samples per second of the sound; DataError where there is none."""
    if info.audio_rate is None:
        raise DataError(f"{info.path.name}: no sound")
    if not info.audio_rate:
        raise DataError(f"{info.path.name}: its sound ({info.audio_codec}) cannot be decoded")
    return info.audio_rate


def sound_pieces(info: VideoInfo) -> Iterator[Tensor]:
    """The mean of all channels of the chosen sound track, (T,) float32 piece by piece, no longer than a second each.

    Sample 0 is the instant of the first picture; where the sound begins later or has a hole, there are zeros, and where
    it steps back in time, what is there already stays. What cannot be decoded is passed over. Raises DataError where
    there is no sound at all.
    """
    for piece in sound_blocks(info):
        yield piece.wave


@dataclass(frozen=True)
class Piece:
    """Up to a second of sound."""

    wave: Tensor
    """The mean of all channels (T,), float32."""
    full: Tensor
    """Where a channel is at full scale (T,), bool: the mean would hide it."""
    real: bool
    """False for zeros that stand where there is no sound."""


def sound_blocks(info: VideoInfo) -> Iterator[Piece]:
    """What `sound_pieces` gives, and what of it is real. A hole longer than LONGEST_HOLE ends the sound."""
    rate = sound_rate(info)
    length = 0
    for time, block in _blocks(info, rate):
        position = length if time is None else round((time - info.origin) * rate)
        if length == 0 and position < 0:
            block = block[:, -position:]
        elif length - position > JUMP * rate:  # sound of instants that have theirs: it would delay all that follows
            block = block[:, length - position :]
        elif position - length > (JUMP * rate if length else 0):
            if position - length > LONGEST_HOLE * rate:
                break
            for first in range(length, position, rate):
                count = min(rate, position - first)
                yield Piece(torch.zeros(count), torch.zeros(count, dtype=torch.bool), real=False)
            length = position
        for channels in torch.split(torch.from_numpy(block), rate, dim=1):
            yield Piece(channels.mean(0), (channels.abs() >= FULL_SCALE).any(0), real=True)
        length += block.shape[1]
    if length == 0:
        raise DataError(f"{info.path.name}: its sound ({info.audio_codec}) cannot be decoded")


def resample_audio(waveform: Tensor, rate: int, target: int) -> Tensor:
    """(..., T) at `rate` Hz -> (..., T * target / rate, rounded up) at `target` Hz, by a Kaiser-windowed sinc."""
    if rate == target:
        return waveform
    resampled: Tensor = resampler(rate, target)(waveform)
    return resampled


def resampler(rate: int, target: int) -> Resample:
    """What `resample_audio` computes with: it sees `ZEROS` periods of the lower rate to both sides of a sample."""
    return Resample(
        rate,
        target,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=ZEROS,
        rolloff=ROLLOFF,
        beta=14.769656459379492,
    )


def audio_window(waveform: Tensor, rate: int, start: float, samples: int, peak: float | None = PEAK) -> Tensor:
    """`samples` samples from `start` seconds on (samples,), zero-padded past the end, scaled to the peak `peak`.

    A silent window (peak below 1e-6) and `peak=None` leave the scale as it is.
    """
    first = round(start * rate)
    return fitted(waveform[first : first + samples], samples, peak)


def fitted(window: Tensor, samples: int, peak: float | None = PEAK) -> Tensor:
    """A window (T,) zero-padded to `samples` and scaled to the peak `peak`, as `audio_window` does it.

    It is divided first and multiplied then, as the reference does: another order rounds differently by one part in
    10^8, which the logarithm of a nearly silent mel band makes 0.0008 of.
    """
    window = torch.nn.functional.pad(window, (0, samples - len(window)))
    loudest = float(window.abs().max())
    return window if peak is None or loudest < SILENT_PEAK else window / loudest * peak


def _blocks(info: VideoInfo, rate: int) -> Iterator[tuple[float | None, npt.NDArray[np.float32]]]:
    """Time in seconds and samples (channels, T) of every decoded block; its kind of samples may change on the way."""
    with opened(info.path) as container:
        resampler, kind = None, None
        for frame in decoded(container, container.streams.audio[info.track]):
            if kind != (frame.format.name, frame.layout.name, frame.sample_rate):
                kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = av.AudioResampler(format="flt", rate=rate)  # PyAV crashes on eight planes
            assert resampler is not None
            time = None if frame.pts is None else float(frame.pts * frame.time_base)
            for converted in resampler.resample(frame):
                channels = converted.layout.nb_channels
                yield time, converted.to_ndarray().reshape(-1, channels).T
