"""The sound of a video: read as mono on the picture's time axis, resampled, cut into windows.

Legend: C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchaudio.transforms import Resample

from mmaudio.data.video import VideoInfo, decoded, opened, probe
from mmaudio.errors import DataError

PEAK = 0.95
"""Peak of a training window."""
SILENT_PEAK = 1e-6
"""A window whose peak is below this cannot be scaled."""
JUMP = 0.05
"""Seconds that a time stamp may disagree with the samples before it; beyond, samples are missing there."""


def read_audio(path: Path | str, info: VideoInfo | None = None) -> tuple[Tensor, int]:
    """The mean of all channels of the first sound track (T,) float32 and its rate in hertz.

    Sample 0 is the instant of the first picture; where the sound begins later or has a hole, there are zeros. What
    cannot be decoded is passed over. Raises DataError where there is no sound at all.
    """
    info = info or probe(path)
    if info.audio_rate is None:
        raise DataError(f"{Path(path).name}: no sound")
    rate = info.audio_rate
    blocks: list[npt.NDArray[np.float32]] = []
    length = 0
    for time, block in _blocks(info.path, rate):
        position = length if time is None else round((time - info.origin) * rate)
        if length == 0 and position < 0:
            block = block[-position:]
        elif position - length > (JUMP * rate if length else 0):
            blocks.append(np.zeros(position - length, np.float32))
            length = position
        blocks.append(block)
        length += len(block)
    if length == 0:
        raise DataError(f"{info.path.name}: its sound ({info.audio_codec}) cannot be decoded")
    return torch.from_numpy(np.concatenate(blocks)), rate


def resample_audio(waveform: Tensor, rate: int, target: int) -> Tensor:
    """(..., T) at `rate` Hz -> (..., T * target / rate, rounded up) at `target` Hz, by a Kaiser-windowed sinc."""
    if rate == target:
        return waveform
    resampled: Tensor = Resample(
        rate, target, resampling_method="sinc_interp_kaiser", lowpass_filter_width=64, rolloff=0.9475937167399596,
        beta=14.769656459379492,
    )(waveform)  # fmt: skip
    return resampled


def audio_window(waveform: Tensor, rate: int, start: float, samples: int, peak: float | None = PEAK) -> Tensor:
    """`samples` samples from `start` seconds on (samples,), zero-padded past the end, scaled to the peak `peak`.

    A silent window (peak below 1e-6) and `peak=None` leave the scale as it is.
    """
    first = round(start * rate)
    window = waveform[first : first + samples]
    window = torch.nn.functional.pad(window, (0, samples - len(window)))
    loudest = float(window.abs().max())
    return window if peak is None or loudest < SILENT_PEAK else window * (peak / loudest)


def _blocks(path: Path, rate: int) -> Iterator[tuple[float | None, npt.NDArray[np.float32]]]:
    """Time in seconds and mono samples of every decoded block."""
    with opened(path) as container:
        resampler = av.AudioResampler(format="fltp", rate=rate)
        for frame in decoded(container, container.streams.audio[0]):
            time = None if frame.pts is None else float(frame.pts * frame.time_base)
            for converted in resampler.resample(frame):
                yield time, converted.to_ndarray().mean(axis=0, dtype=np.float32)
