"""One gain for all of a video, from the peaks of its seconds; a window's own peak says nothing about its loudness.

The gain brings the loudest second to the level of training, PEAK. The very loudest second and the louder one of its
neighbours are left aside, as one knock at the microphone must not make everything else quiet; but the gain is at most
MAX_BOOST_DB above the one that brings that second to PEAK, so that the pauses around a single event stay quiet.

Legend: T samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mmaudio.media.audio import PEAK, SILENT_PEAK, AudioChunk

CANCELLED = 10 ** (-20 / 10)
"""Energy of the sum of all channels over that of the loudest, below which they cancel each other."""
ABOUT_AS_LOUD = 10 ** (-1 / 10)
"""Energy of a channel over that of the loudest, from which it is as good."""
MAX_BOOST_DB = 12.0
"""Decibels by which the loudest second may exceed PEAK; a window that does is scaled down to PEAK."""


class LevelMeter:
    """The peaks of consecutive seconds of audio, and whether its channels cancel each other."""

    def __init__(self, sample_rate: int) -> None:
        self.peaks: list[float] = []
        self._energies, self._sum_energy = torch.zeros(0), 0.0
        """Of every channel, and of the sum of all."""
        self._block_length, self._position = sample_rate, 0

    def watch(self, chunks: Iterable[AudioChunk]) -> Iterator[AudioChunk]:
        """Measure `chunks` while they are read."""
        for chunk in chunks:
            self._add(chunk.waveform)
            self._add_energies(chunk)
            yield chunk

    def channel_instead_of_mean(self) -> int | None:
        """Where the channels cancel each other, the first that is about as loud as the loudest; else None."""
        loudest = float(self._energies.max()) if len(self._energies) > 1 else 0.0
        if self._sum_energy >= CANCELLED * loudest:
            return None
        return int((self._energies >= ABOUT_AS_LOUD * loudest).nonzero()[0])

    def _add_energies(self, chunk: AudioChunk) -> None:
        count = max(len(self._energies), len(chunk.channel_energies))
        pad = torch.nn.functional.pad
        self._energies = pad(self._energies, (0, count - len(self._energies))) + pad(
            chunk.channel_energies, (0, count - len(chunk.channel_energies))
        )
        self._sum_energy += float(chunk.waveform.square().sum()) * len(chunk.channel_energies) ** 2

    def _add(self, waveform: Tensor) -> None:
        """Measure the samples (T,) that follow."""
        while len(waveform):
            block = waveform[: self._block_length - self._position]
            peak = float(block.abs().max())
            if self._position:
                self.peaks[-1] = max(self.peaks[-1], peak)
            else:
                self.peaks.append(peak)
            self._position = (self._position + len(block)) % self._block_length
            waveform = waveform[len(block) :]


def video_gain_db(peaks: Sequence[float]) -> float:
    """The gain in decibels of a video with the `peaks` of its seconds; 0 for a silent one."""
    loudest = max(range(len(peaks)), key=peaks.__getitem__, default=None)
    if loudest is None or peaks[loudest] < SILENT_PEAK:
        return 0.0
    neighbours = [second for second in (loudest - 1, loudest + 1) if 0 <= second < len(peaks)]
    knock = {loudest, max(neighbours, key=peaks.__getitem__, default=loudest)}
    others = [peak for second, peak in enumerate(peaks) if second not in knock]
    level = max([peaks[loudest] / 10 ** (MAX_BOOST_DB / 20), *others]) if others else peaks[loudest]
    return round(20 * math.log10(PEAK / level), 2)
