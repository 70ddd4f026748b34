"""Integrated loudness, and the share of a sound that is near-silent. Pure functions; no models.

B batch, T samples. torchaudio's loudness is not used: its filters clip at full scale, and are 0.3 LU off the standard's
own test tone at 44.1 kHz.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

ABSOLUTE_GATE = -70.0
"""LUFS of the standard's absolute gate; everything below counts as this."""
RELATIVE_GATE = -10.0
"""LU below the mean of the louder blocks, at which blocks stop counting."""
OFFSET = -0.691
"""LUFS of a K-weighted mean power of one."""
BLOCK_SECONDS, OVERLAP = 0.4, 4
"""Length of the standard's blocks, and how many of them cover an instant; a shorter sound has no loudness."""
FRAME_SECONDS = 0.1
"""Length of the frames of which a level is computed."""
SILENT, AUDIBLE = -60.0, -50.0
"""Levels in dB below full scale (RMS): a frame below the first is silent, one above the second is audible."""

Array = npt.NDArray[np.float64]


def loudness(waveforms: Tensor, sample_rate: int) -> Tensor:
    """Integrated loudness of mono sounds (B, T) in LUFS, (B,); NaN below 0.4 s. Source: ITU-R BS.1770-4.

    The K-weighted mean power of 0.4 s blocks, a quarter apart, without those below -70 LUFS, and then without those
    10 LU below the mean of the others.
    """
    waves = waveforms.detach().cpu().double().numpy()
    block_length, hop_length = round(BLOCK_SECONDS * sample_rate), round(BLOCK_SECONDS * sample_rate / OVERLAP)
    if waves.shape[1] < block_length:
        return torch.full((len(waves),), torch.nan, dtype=torch.float64)
    from scipy.signal import sosfilt  # slow to import

    weighted = sosfilt(k_weighting(sample_rate), waves) ** 2
    cumulative = np.cumsum(np.pad(weighted, ((0, 0), (1, 0))), axis=1)
    starts = np.arange(0, waves.shape[1] - block_length + 1, hop_length)
    power = (cumulative[:, starts + block_length] - cumulative[:, starts]) / block_length  # (B, blocks)
    return torch.tensor([_gated_loudness(row) for row in power], dtype=torch.float64)


def _gated_loudness(power: Array) -> float:
    """Loudness of the blocks (blocks,) that pass both gates."""
    audible = power[_lufs(power) > ABSOLUTE_GATE]
    if len(audible) == 0:
        return ABSOLUTE_GATE
    gated = audible[_lufs(audible) > _lufs(audible.mean()) + RELATIVE_GATE]
    return float(_lufs(gated.mean()))


def _lufs(power: Array) -> Array:
    level: Array = OFFSET + 10 * np.log10(np.maximum(power, 1e-20))
    return level


def k_weighting(sample_rate: int) -> Array:
    """The standard's two filters for any sample rate, second-order sections (2, 6): a high shelf and a high-pass.

    The standard lists coefficients for 48 kHz alone; these bilinear filters are those at 48 kHz. Source: the analogue
    parameters of Brecht De Man, Evaluation of implementations of the EBU R128 loudness measurement, AES 2018.
    """
    k, q = math.tan(math.pi * 1681.974450955533 / sample_rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    norm = 1 + k / q + k * k
    shelf = [high + middle * k / q + k * k, 2 * (k * k - high), high - middle * k / q + k * k]
    poles = [norm, 2 * (k * k - 1), 1 - k / q + k * k]
    first = [value / norm for value in (*shelf, *poles)]
    k, q = math.tan(math.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    norm = 1 + k / q + k * k
    second = [1.0, -2.0, 1.0, 1.0, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm]
    return np.array([first, second])


def frame_levels(waveforms: Tensor, sample_rate: int) -> Tensor:
    """Levels of the frames of (B, T) in dB below full scale (RMS), (B, frames); an incomplete last frame is dropped."""
    frame_length = min(round(FRAME_SECONDS * sample_rate), waveforms.shape[1])
    whole_frames = waveforms[:, : waveforms.shape[1] // frame_length * frame_length]
    power = rearrange(whole_frames.double(), "b (f s) -> b f s", s=frame_length).square().mean(2)
    return 10 * power.clamp(min=1e-12).log10()


def near_silent(waveforms: Tensor, reference: Tensor, sample_rate: int) -> Tensor:
    """Share of the frames that are audible in the reference (T,) and silent in (B, T); (B,), 0 to 1.

    NaN where no frame of the reference is audible. Lower is better.
    """
    audible = frame_levels(reference[None], sample_rate)[0] > AUDIBLE
    silent = frame_levels(waveforms, sample_rate)[:, audible] < SILENT
    return silent.double().mean(1)  # the mean of nothing is NaN
