"""The mel spectrogram: the golden numbers, the time that a frame stands for, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import assert_close, filled, golden
from torch import Tensor

from mmaudio.errors import ConfigError, DataError
from mmaudio.features.mel import build_mel
from mmaudio.model.spec import CODECS


def codec_waveform(rate: int, samples: int) -> Tensor:
    """The golden codec input of `golden/README.md`: (1, samples)."""
    t = np.arange(samples) / rate
    wave = 0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * (100 * t + 400 * t**2))
    wave += 0.05 * filled(f"input/noise{rate}", samples).double().numpy()
    wave[np.arange(samples) % (rate // 2) < 40] += 0.4
    return torch.from_numpy(wave.astype(np.float32))[None]


@pytest.mark.parametrize(("mode", "samples"), [("16k", 32_768), ("44k", 65_536)])
def test_outputs_match_the_golden_numbers(mode: str, samples: int):
    mel = build_mel(mode)(codec_waveform(CODECS[mode].sample_rate, samples))
    assert_close(mel, golden(f"codec_{mode}")["mel"])


@pytest.mark.parametrize("mode", ["16k", "44k"])
def test_silent_bands_beside_a_tone_hold_no_rounding_error(mode: str):
    """Against numpy's transform, in float64: bands without sound are those that float32 would fill."""
    spec, mel = CODECS[mode], build_mel(mode)
    wave = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(spec.sample_rate).double() / spec.sample_rate).float()
    edged = np.pad(wave.double().numpy(), mel.padding, "reflect")
    frames = np.lib.stride_tricks.sliding_window_view(edged, spec.n_fft)[:: spec.hop_length]
    spectrum = np.fft.rfft(frames * mel.window.double().numpy()).T  # (n_fft / 2 + 1, frames)
    magnitude = np.sqrt(np.abs(spectrum) ** 2 + 1e-9)
    expected = np.log(np.maximum(mel.bank.double().numpy() @ magnitude, 1e-5)) / math.log(spec.log_base)
    torch.testing.assert_close(mel(wave[None])[0].double(), torch.from_numpy(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["16k", "44k"])
def test_a_click_lies_in_its_own_frame(mode: str):
    spec = CODECS[mode]
    waveform = torch.zeros(1, 40 * spec.hop_length)
    waveform[0, 20 * spec.hop_length + spec.hop_length // 2] = 1.0
    mel = build_mel(mode)(waveform)
    assert mel.shape == (1, spec.n_mels, 40)
    assert int(mel.sum(1).argmax()) == 20


def test_a_tone_lies_in_its_mel_band_on_the_codecs_scale():
    wave = 0.5 * torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / 16_000)[None]
    bands = {mode: build_mel(mode)(wave) for mode in ("16k", "tiny_16k")}
    assert torch.equal(bands["16k"], bands["tiny_16k"])
    slaney_mels_of_1khz, slaney_mels_of_8khz = 15.0, 15 + 27 * math.log(8) / math.log(6.4)
    expected = slaney_mels_of_1khz / slaney_mels_of_8khz * 81 - 1
    assert abs(int(bands["16k"].mean(-1).argmax()) - expected) <= 1


def test_lengths_at_the_limits():
    mel = build_mel("16k")
    loud = 3 * torch.ones(1, 4096)
    assert torch.equal(mel(loud), mel(loud.clamp(-1, 1)))
    assert float(mel(torch.zeros(1, 4096)).min()) == pytest.approx(-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mel(0.1 * loud), mel(0.1 * loud.double()))
    with pytest.raises(DataError, match="384 samples"):
        mel(torch.zeros(1, 384))
    with pytest.raises(ConfigError, match="did you mean '44k'"):
        build_mel("44khz")
