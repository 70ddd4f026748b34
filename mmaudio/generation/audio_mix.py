"""The audio that is written: the video's own sound under the generated one, and the loudness of the result.

    mix = AudioMix(loudness=-23.0, original_db=-12.0)
    waveforms, notes = mix.apply(waveforms, sample_rate, video, start)

Nothing is clipped: where the peak would exceed PEAK, all of it is turned down.

Legend: S samples, T audio samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.errors import ConfigError, DataError
from mmaudio.media.audio_windows import read_audio_windows
from mmaudio.media.streams import DEFAULT_STREAMS, StreamChoice
from mmaudio.media.video import VideoInfo, probe
from mmaudio.metrics.loudness import ABSOLUTE_GATE, loudness

PEAK = 10 ** (-1 / 20)
"""Highest peak of a mix or of audio of a loudness: 1 dB below full scale, as EBU R 128 has it for lossy formats."""
MIN_LOUDNESS, MAX_LOUDNESS = -60.0, -5.0
"""In LUFS."""
MIN_ORIGINAL_DB, MAX_ORIGINAL_DB = -60.0, 12.0
BLOCK_SECONDS = 10
"""Seconds of the original sound that are resampled at once."""


@dataclass(frozen=True)
class AudioMix:
    """What is done to generated audio; ConfigError for values that make no sense."""

    loudness: float | None = None
    """Integrated loudness of the result in LUFS (ITU-R BS.1770); None: as generated."""
    original_db: float | None = None
    """Gain in dB of the video's own sound, which is added; None: it is not."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.loudness is not None and not MIN_LOUDNESS <= self.loudness <= MAX_LOUDNESS:
            raise ConfigError(
                f"--loudness {self.loudness:g}: LUFS from {MIN_LOUDNESS:g} to {MAX_LOUDNESS:g}; broadcasting has -23"
            )
        if self.original_db is not None and not MIN_ORIGINAL_DB <= self.original_db <= MAX_ORIGINAL_DB:
            raise ConfigError(
                f"--keep-original {self.original_db:g}: dB from {MIN_ORIGINAL_DB:g} to {MAX_ORIGINAL_DB:g}; -12 is "
                "under the new sound, 0 as loud as it was"
            )

    def apply(
        self,
        waveforms: Tensor,
        sample_rate: int,
        video: Path | None = None,
        start: float = 0.0,
        streams: StreamChoice = DEFAULT_STREAMS,
    ) -> tuple[Tensor, list[str]]:
        """The waveforms (S, T) with the sound of `video` from `start` on added, of the loudness, and notes on them."""
        if self.loudness is None and self.original_db is None:
            return waveforms, []
        notes = []
        if self.original_db is not None and video is not None:
            info = probe(video, streams)
            if info.audio_sample_rate is not None:
                original = read_original(info, start, sample_rate, waveforms.shape[1])
                waveforms = waveforms + 10 ** (self.original_db / 20) * original
            else:
                notes.append("the video has no sound of its own to keep")
        scaled = []
        for waveform in waveforms:
            gain, note = self._find_gain(waveform, sample_rate)
            scaled.append(gain * waveform)
            notes += [note] if note else []
        return torch.stack(scaled), notes

    def check_source(self, video: Path | None, streams: StreamChoice = DEFAULT_STREAMS) -> None:
        """Raise ConfigError where there is no video whose sound could be added, DataError where it has none."""
        if self.original_db is None:
            return
        if video is None:
            raise ConfigError("--keep-original: there is no video whose sound it could be")
        if probe(video, streams).audio_sample_rate is None:
            raise DataError(f"{video.name}: no sound of its own to keep; leave --keep-original out")

    def _find_gain(self, waveform: Tensor, sample_rate: int) -> tuple[float, str]:
        """The factor of a waveform (T,), and a note where it is not the one of the loudness."""
        peak = float(waveform.abs().max())
        level = float(loudness(waveform[None], sample_rate)[0])
        if self.loudness is None:
            gain = min(1.0, PEAK / peak) if peak > 1 else 1.0
            return gain, f"turned down by {-decibels(gain):.1f} dB, or the mix would clip" if gain < 1 else ""
        if level <= ABSOLUTE_GATE or math.isnan(level):
            return 1.0, "too quiet to have a loudness; it is as generated"
        gain = 10 ** ((self.loudness - level) / 20)
        if peak * gain <= PEAK:
            return gain, ""
        gain = PEAK / peak
        return gain, f"{level + decibels(gain):.1f} LUFS instead of {self.loudness:g}: louder, its peak would clip"


def decibels(gain: float) -> float:
    """A factor in dB."""
    return 20 * math.log10(gain)


def read_original(info: VideoInfo, start: float, sample_rate: int, samples: int) -> Tensor:
    """The video's own sound as mono (samples,) from `start` seconds on; zeros where it has ended."""
    block = BLOCK_SECONDS * sample_rate
    starts = [start + BLOCK_SECONDS * index for index in range(math.ceil(samples / block))]
    return torch.cat(list(read_audio_windows(info, starts, sample_rate, block, peak=None)))[:samples]
