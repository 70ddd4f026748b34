"""Audio levels of a clip: peak, RMS, share of silence and integrated loudness."""

from __future__ import annotations

import math

from torch import Tensor
from torchaudio.functional import loudness

FLOOR_DB = -120.0
FLOOR_LUFS = -70.0
"""Quieter blocks do not count in loudness (ITU-R BS.1770)."""
BLOCK_SECONDS = 0.05
"""Length of the blocks that silence is measured in."""
MIN_LOUDNESS_SECONDS = 0.4
"""Length of a block of ITU-R BS.1770; a shorter waveform has no loudness."""
FILTER_PEAK = 0.25
"""Peak that the loudness filters process without limiting."""


def measure_levels(waveform: Tensor, sample_rate: int, silence_db: float) -> tuple[float, float, float]:
    """Peak and RMS in decibels of full scale, and the share of 50 ms blocks whose peak is below `silence_db`."""
    if not len(waveform):
        return FLOOR_DB, FLOOR_DB, 1.0
    block = min(len(waveform), max(1, round(BLOCK_SECONDS * sample_rate)))
    block_peaks = waveform[: len(waveform) // block * block].reshape(-1, block).abs().amax(1)
    silence = float((block_peaks < 10 ** (silence_db / 20)).double().mean())
    peak, rms = float(waveform.abs().max()), float(waveform.double().square().mean().sqrt())
    return to_decibels(peak), to_decibels(rms), round(silence, 3)


def integrated_loudness(waveform: Tensor, sample_rate: int) -> float:
    """Integrated loudness (ITU-R BS.1770-4) in LUFS of a mono waveform (T,) of at least 0.4 s, at least FLOOR_LUFS."""
    peak = float(waveform.abs().max()) if len(waveform) >= MIN_LOUDNESS_SECONDS * sample_rate else 0.0
    if peak <= 0:
        return FLOOR_LUFS
    scale = min(1.0, FILTER_PEAK / peak)
    integrated_loudness = float(loudness(waveform.double()[None] * scale, sample_rate)) - 20 * math.log10(scale)
    return round(max(FLOOR_LUFS, integrated_loudness), 2) if math.isfinite(integrated_loudness) else FLOOR_LUFS


def to_decibels(amplitude: float) -> float:
    """Decibels of full scale, at least FLOOR_DB."""
    return round(max(FLOOR_DB, 20 * math.log10(amplitude)), 2) if amplitude > 0 else FLOOR_DB
