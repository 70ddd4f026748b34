"""Audio synthesis: strikes at events, and hums that follow a motion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmaudio.synthetic.domains import Timbre

Array = npt.NDArray[np.float64]

NOISE_FLOOR = 2e-3
"""Standard deviation of the background noise."""
ATTACK_SECONDS = 0.002
"""Rise time of a strike."""


def synthesize_noise_band(
    num_samples: int, frequency: float, octaves: float, sample_rate: int, generator: np.random.Generator
) -> Array:
    """Noise (samples,) of standard deviation 1 in a band around `frequency` with Gaussian flanks."""
    size = max(num_samples, sample_rate // 4)
    spectrum = np.fft.rfft(generator.standard_normal(size))
    with np.errstate(divide="ignore"):
        distance = np.log2(np.fft.rfftfreq(size, 1 / sample_rate) / frequency) / (octaves / 2)
    band: Array = np.fft.irfft(spectrum * np.exp(-0.5 * distance**2), size)[:num_samples]
    band /= band.std() + 1e-9
    return band


def synthesize_strike(timbre: Timbre, sample_rate: int, generator: np.random.Generator) -> Array:
    """One strike (samples,), peak 1, six decays long."""
    times = np.arange(int(sample_rate * (6 * timbre.decay + ATTACK_SECONDS))) / sample_rate
    waveform = np.zeros_like(times)
    phase = timbre.frequency * times
    if timbre.sweep_octaves:
        slope = timbre.sweep_octaves * np.log(2) / timbre.decay
        sweep_times = np.minimum(times, 2 * timbre.decay)
        phase = timbre.frequency * (
            np.expm1(slope * sweep_times) / slope + (times - sweep_times) * np.exp(slope * sweep_times)
        )
    for ratio, amplitude in timbre.partials:
        if ratio * timbre.frequency < 0.45 * sample_rate:
            waveform += amplitude * np.sin(2 * np.pi * (ratio * phase + generator.random()))
    if timbre.noise:
        waveform += (
            0.5
            * timbre.noise
            * synthesize_noise_band(len(times), timbre.frequency, timbre.noise_octaves, sample_rate, generator)
        )
    waveform *= np.minimum(times / ATTACK_SECONDS, 1.0) * np.exp(-times / timbre.decay)
    waveform /= np.abs(waveform).max() + 1e-9
    return waveform


def synthesize_hum(timbre: Timbre, loudness: Array, sample_rate: int, generator: np.random.Generator) -> Array:
    """A continuous sound (samples,) with the amplitude `loudness` (samples,)."""
    times = np.arange(len(loudness)) / sample_rate
    waveform = np.zeros_like(times)
    for ratio, amplitude in timbre.partials:
        waveform += amplitude * np.sin(2 * np.pi * (ratio * timbre.frequency * times + generator.random()))
    if timbre.noise:
        waveform += (
            0.5
            * timbre.noise
            * synthesize_noise_band(len(times), timbre.frequency, timbre.noise_octaves, sample_rate, generator)
        )
    waveform *= loudness / 1.5
    return waveform
