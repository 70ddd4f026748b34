"""Spectral distances of a sound from the original: mel, STFT, centroid and bandwidth. Pure functions; no models.

B batch, M mel bands, T mel frames. Mel values are logarithms in the codec's own base (`CodecSpec.log_base`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmaudio.media.audio import SILENT_PEAK

LOUD = -2.2
"""Common logarithm of the mel value above which a cell counts as loud. It lies 0.4 above the mel value that white noise
of standard deviation 0.002 (54 dB below full scale) has, at both released rates: noise floors stay below."""


def loud_threshold(log_base: float) -> float:
    """`LOUD` in logarithms of `log_base`: -2.2 for base 10, -5.07 for the natural logarithm."""
    return LOUD * math.log(10) / math.log(log_base)


def mel_l1(mel: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference over all cells, in the codec's own logarithm; (B, M, T) twice -> (B,). Lower is better.

    It measures how close the spectrum is over time; most cells of quiet recordings are noise floor, which dominates it.
    """
    return (mel - reference).abs().mean((1, 2))


def mel_l1_loud(mel: Tensor, reference: Tensor, log_base: float) -> Tensor:
    """`mel_l1` over the cells whose reference is above `LOUD`; (B,), NaN for a clip that has none. Lower is better.

    For natural-log codecs the threshold is the same mel value (`loud_threshold`) and the distance stays in natural
    logarithms. Sound where the original is quiet does not count here: `mel_l1` has it.
    """
    loud = reference > loud_threshold(log_base)
    total = ((mel - reference).abs() * loud).sum((1, 2))
    return total / loud.sum((1, 2)).to(total.dtype).where(loud.any(2).any(1), torch.nan)


RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""FFT size, hop and window of each resolution of the STFT distance, in samples."""
MIN_POWER = 1e-8
"""Power below which an STFT cell counts as this."""
N_FFT, HOP_LENGTH = 2048, 512
"""Window and hop, in samples, of the spectrum whose centroid and bandwidth are computed."""


def magnitudes(waveforms: Tensor, n_fft: int, hop_length: int, win_length: int, min_power: float = 0.0) -> Tensor:
    """STFT magnitudes with a Hann window and reflect padding: (B, samples) -> (B, n_fft / 2 + 1, frames)."""
    window = torch.hann_window(win_length, dtype=waveforms.dtype, device=waveforms.device)
    cells = torch.stft(waveforms, n_fft, hop_length, win_length, window, center=True, return_complex=True)
    return cells.abs() if not min_power else (cells.real**2 + cells.imag**2).clamp(min=min_power).sqrt()


def resolution_magnitudes(waveforms: Tensor) -> list[Tensor]:
    """The `magnitudes` of (B, samples) at each of RESOLUTIONS, which `stft_distance` compares."""
    return [magnitudes(waveforms, *resolution, MIN_POWER) for resolution in RESOLUTIONS]


def stft_distance(waveforms: Tensor, reference: Tensor, reference_stfts: Sequence[Tensor] | None = None) -> Tensor:
    """Multi-resolution STFT distance of (B, samples) from (1 or B, samples) -> (B,); NaN for a silent reference.

    Lower is better. `reference_stfts` are the reference's `resolution_magnitudes`, where they are known.

    The mean over `RESOLUTIONS` of the spectral convergence |S - R| / |R| (Frobenius norms of the magnitudes) and the
    mean absolute difference of the magnitudes' natural logarithms. A reference with a peak below `SILENT_PEAK` has no
    |R| to divide by: one such clip, at 10^4 and more, would be all that a mean says. Source: arXiv 1910.11480.
    """
    total = torch.zeros(len(waveforms), device=waveforms.device)
    reference_stfts = resolution_magnitudes(reference) if reference_stfts is None else reference_stfts
    for stft, reference_stft in zip(resolution_magnitudes(waveforms), reference_stfts, strict=True):
        convergence = (reference_stft - stft).norm(dim=(1, 2)) / reference_stft.norm(dim=(1, 2))
        total += convergence + (stft.log() - reference_stft.log()).abs().mean((1, 2))
    return (total / len(RESOLUTIONS)).where(reference.abs().amax(1) >= SILENT_PEAK, torch.nan)


def centroid_and_bandwidth(waveforms: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Spectral centroid and bandwidth of whole sounds in hertz, (B, samples) -> (B,) twice; NaN for digital silence.

    The spectrum is the STFT magnitude summed over time, so that quiet moments weigh little; the centroid is its mean
    frequency, the bandwidth its standard deviation around that. Source: the MPEG-7 spectral centroid and spread, as
    librosa computes them on magnitudes.
    """
    spectrum = magnitudes(waveforms.double(), N_FFT, HOP_LENGTH, N_FFT).sum(2)  # (B, bins)
    weights = spectrum / spectrum.sum(1, keepdim=True)  # 0 / 0 is NaN: silence has no centroid
    frequencies = torch.linspace(0, sample_rate / 2, spectrum.shape[1], dtype=torch.float64, device=spectrum.device)
    centroid = weights @ frequencies
    variance = (weights * (frequencies - centroid[:, None]).square()).sum(1)
    return centroid, variance.sqrt()
