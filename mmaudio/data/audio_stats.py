"""The sound of a video's windows, measured in one decoding pass, in memory that the windows bound and not the video.

What is measured is the mean of all channels, which is what training hears; only clipping is looked for in each channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchaudio.functional import loudness

from mmaudio.media.audio import Piece

FLOOR_DB = -120.0
FLOOR_LUFS = -70.0
"""Quieter blocks do not count in loudness (ITU-R BS.1770)."""
BLOCK = 0.05
"""Seconds of the blocks that silence is measured in."""
HEADROOM = 0.25
"""Peak that the loudness filters take without limiting."""


@dataclass(frozen=True)
class Heard:
    """The sound of one window."""

    wave: Tensor
    """(T,) float32, shorter than the window where the sound ends."""
    full: Tensor
    """Where a channel is at full scale (T,), bool."""
    missing: float
    """Seconds of the window without sound."""


def heard(pieces: Iterable[Piece], rate: int, windows: Sequence[tuple[float, float]]) -> Iterator[Heard]:
    """The sound of `windows` (from and to in seconds, ascending), each as soon as it has been read."""
    source = iter(pieces)
    kept: list[Piece] = []
    position, end = 0, 0  # of the first sample that is kept and of the one after the last
    for start, stop in windows:
        first, last = round(start * rate), round(stop * rate)
        while end < last and (piece := next(source, None)) is not None:
            kept.append(piece)
            end += len(piece.wave)
        while kept and position + len(kept[0].wave) <= first:
            position += len(kept.pop(0).wave)
        part = slice(max(0, first - position), max(0, last - position))
        real = torch.cat([torch.full((len(piece.wave),), piece.real) for piece in kept] or [torch.zeros(0)])
        wave = torch.cat([piece.wave for piece in kept] or [torch.zeros(0)])[part]
        full = torch.cat([piece.full for piece in kept] or [torch.zeros(0, dtype=torch.bool)])[part]
        yield Heard(wave, full, (last - first - int(real[part].sum())) / rate)


def levels(wave: Tensor, rate: int, silence_db: float) -> tuple[float, float, float]:
    """Peak and root mean square in decibels of full scale, and the share of 50 ms blocks whose peak is below
    `silence_db`.
    """
    if not len(wave):
        return FLOOR_DB, FLOOR_DB, 1.0
    block = min(len(wave), max(1, round(BLOCK * rate)))
    peaks = wave[: len(wave) // block * block].reshape(-1, block).abs().amax(1)
    quiet = float((peaks < 10 ** (silence_db / 20)).double().mean())
    return decibels(float(wave.abs().max())), decibels(float(wave.double().square().mean().sqrt())), round(quiet, 3)


def lufs(wave: Tensor, rate: int) -> float:
    """Integrated loudness (ITU-R BS.1770-4) of a mono sound (T,) of at least 0.4 s; not below FLOOR_LUFS."""
    peak = float(wave.abs().max()) if len(wave) >= 0.4 * rate else 0.0
    if peak <= 0:
        return FLOOR_LUFS
    scale = min(1.0, HEADROOM / peak)
    value = float(loudness(wave.double()[None] * scale, rate)) - 20 * math.log10(scale)
    return round(max(FLOOR_LUFS, value), 2) if math.isfinite(value) else FLOOR_LUFS


def decibels(amplitude: float) -> float:
    """Decibels of full scale, not below FLOOR_DB."""
    return round(max(FLOOR_DB, 20 * math.log10(amplitude)), 2) if amplitude > 0 else FLOOR_DB
