"""How things sound: struck sounds at their events, and hums that follow a motion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmaudio.synthetic.domains import Timbre

Array = npt.NDArray[np.float64]

FLOOR = 2e-3
"""Standard deviation of the noise that is always there."""
ATTACK = 0.002
"""Seconds in which a struck sound rises."""


def noise_band(samples: int, frequency: float, octaves: float, rate: int, generator: np.random.Generator) -> Array:
    """Noise (samples,) of standard deviation 1 in a band around `frequency` with Gaussian flanks."""
    size = max(samples, rate // 4)
    spectrum = np.fft.rfft(generator.standard_normal(size))
    with np.errstate(divide="ignore"):
        distance = np.log2(np.fft.rfftfreq(size, 1 / rate) / frequency) / (octaves / 2)
    band: Array = np.fft.irfft(spectrum * np.exp(-0.5 * distance**2), size)[:samples]
    band /= band.std() + 1e-9
    return band


def struck(timbre: Timbre, rate: int, generator: np.random.Generator) -> Array:
    """One struck sound (samples,), peak 1, six decays long."""
    times = np.arange(int(rate * (6 * timbre.decay + ATTACK))) / rate
    sound = np.zeros_like(times)
    phase = timbre.frequency * times
    if timbre.sweep:
        slope = timbre.sweep * np.log(2) / timbre.decay
        bent = np.minimum(times, 2 * timbre.decay)
        phase = timbre.frequency * (np.expm1(slope * bent) / slope + (times - bent) * np.exp(slope * bent))
    for ratio, amplitude in timbre.partials:
        if ratio * timbre.frequency < 0.45 * rate:
            sound += amplitude * np.sin(2 * np.pi * (ratio * phase + generator.random()))
    if timbre.noise:
        sound += 0.5 * timbre.noise * noise_band(len(times), timbre.frequency, timbre.octaves, rate, generator)
    sound *= np.minimum(times / ATTACK, 1.0) * np.exp(-times / timbre.decay)
    sound /= np.abs(sound).max() + 1e-9
    return sound


def hum(timbre: Timbre, loudness: Array, rate: int, generator: np.random.Generator) -> Array:
    """A sound that goes on: (samples,) with the given amplitude per sample."""
    times = np.arange(len(loudness)) / rate
    sound = np.zeros_like(times)
    for ratio, amplitude in timbre.partials:
        sound += amplitude * np.sin(2 * np.pi * (ratio * timbre.frequency * times + generator.random()))
    if timbre.noise:
        sound += 0.5 * timbre.noise * noise_band(len(times), timbre.frequency, timbre.octaves, rate, generator)
    sound *= loudness / 1.5
    return sound
