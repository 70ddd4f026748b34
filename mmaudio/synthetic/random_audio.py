"""Random audio of any timbre, wider than both domains: strikes, and hums that swell and fade."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmaudio.synthetic import audio_synthesis
from mmaudio.synthetic.domains import Timbre


def random_timbre(generator: np.random.Generator) -> Timbre:
    """Any timbre: tones, noise bands of any width, and both."""
    frequency = float(np.exp(generator.uniform(np.log(120), np.log(7000))))
    count = int(generator.integers(1, 6))
    ratios = np.arange(1, count + 1) if generator.random() < 0.5 else np.sort(generator.uniform(1, 6, count))
    style = generator.integers(3)  # 0 partials alone, 1 noise alone, 2 both
    return Timbre(
        frequency,
        float(np.exp(generator.uniform(np.log(0.02), np.log(0.6)))),
        tuple((float(r), float(a)) for r, a in zip(ratios, generator.uniform(0.1, 1, count), strict=True))
        if style != 1
        else (),
        noise=float(generator.uniform(0.2, 1)) if style != 0 else 0.0,
        noise_octaves=float(np.exp(generator.uniform(np.log(0.15), np.log(4)))),
        sweep_octaves=float(generator.uniform(-1, 1)) if generator.random() < 0.3 else 0.0,
    )


def random_waveform(seed: int, index: int, num_samples: int, sample_rate: int) -> Tensor:
    """Strikes and hums of any timbre (num_samples,), peak 0.95; it depends on the seed and the index alone."""
    generator = np.random.default_rng((seed, index))
    noise_floor = float(np.exp(generator.uniform(np.log(3e-4), np.log(0.02))))
    waveform = noise_floor * generator.standard_normal(num_samples)
    for _ in range(int(generator.integers(4, 20))):
        strike = audio_synthesis.synthesize_strike(random_timbre(generator), sample_rate, generator)
        strike = strike * generator.uniform(0.05, 1)
        start = int(generator.integers(num_samples))
        waveform[start : start + len(strike)] += strike[: num_samples - start]
    if generator.random() < 0.4:
        times = np.arange(num_samples) / sample_rate
        swing = 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(0.1, 6) * times)
        timbre, peak = random_timbre(generator), generator.uniform(0.05, 0.5)
        waveform += audio_synthesis.synthesize_hum(timbre, peak * swing, sample_rate, generator)
    return torch.from_numpy(waveform * (0.95 / np.abs(waveform).max())).float()
