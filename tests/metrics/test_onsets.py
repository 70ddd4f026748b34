"""Mel distances on values known by hand, and onsets on sounds whose events are known."""

import math

import numpy as np
import pytest
import torch
import torchaudio

from mmaudio.metrics import onsets, spectral
from mmaudio.model.spec import CodecSpec, codec_spec

CODECS = ("16k", "44k")
EVENTS = (0.5, 1.1, 1.9, 2.6, 3.05, 4.4, 5.0, 6.7)


def mel_of(sound: np.ndarray, codec: CodecSpec) -> torch.Tensor:
    """The codec's mel spectrogram, written out anew: (samples,) -> (1, M, T)."""
    padding = (codec.n_fft - codec.hop_length) // 2
    padded = np.pad(np.clip(sound, -1, 1), padding, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, codec.n_fft)[:: codec.hop_length]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(codec.n_fft) / codec.n_fft)
    bins = np.sqrt(np.abs(np.fft.rfft(frames * window)) ** 2 + 1e-9)
    bank = torchaudio.functional.melscale_fbanks(
        codec.n_fft // 2 + 1, *codec.mel_range, codec.n_mels, codec.sample_rate, norm="slaney", mel_scale="slaney"
    )
    mel = torch.from_numpy(bins).float() @ bank
    return (mel.clamp(min=1e-5).log() / math.log(codec.log_base)).T[None]


def scene(kind: str, codec: CodecSpec, noise: float = 2e-3) -> np.ndarray:
    """8 s of hum, a noise floor and one sound of `kind` at each of EVENTS, peak 0.95."""
    rng = np.random.default_rng(3)
    sound = noise * rng.normal(size=8 * codec.sample_rate)
    time = np.arange(codec.sample_rate // 2) / codec.sample_rate
    for index, event in enumerate(EVENTS):
        loud = 0.2 + 0.1 * index
        burst = {
            "click": (time < 5e-4) * 1.0,
            "tone": np.sin(2 * np.pi * (300 + 150 * index) * time) * np.exp(-time / 0.15),
            "noise": 0.3 * rng.normal(size=len(time)) * np.exp(-time / 0.06),
        }[kind]
        start = round(event * codec.sample_rate)
        sound[start : start + len(burst)] += loud * burst
    clock = np.arange(len(sound)) / codec.sample_rate
    sound += 0.05 * np.sin(2 * np.pi * 110 * clock) * (1 + np.sin(1.7 * clock))
    return 0.95 * sound / np.abs(sound).max()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("kind", ["click", "tone", "noise"])
def test_events_are_found_to_15_ms(kind, name):
    codec = codec_spec(name)
    times = onsets.onset_times(mel_of(scene(kind, codec), codec), codec)[0]
    assert onsets.onset_f1(times, EVENTS) == 1.0
    assert np.abs(np.sort(times) - EVENTS).max() < 0.015


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("level", [0.0, 2e-3, 2e-2, 0.2])
def test_steady_noise_has_no_onsets(level, name):
    codec = codec_spec(name)
    noise = level * np.random.default_rng(0).normal(size=8 * codec.sample_rate)
    assert len(onsets.onset_times(mel_of(noise, codec), codec)[0]) == 0


def test_a_gliding_tone_has_no_onsets():
    codec = codec_spec("16k")
    time = np.arange(8 * codec.sample_rate) / codec.sample_rate
    glide = 0.1 * np.sin(2 * np.pi * np.cumsum(300 + 200 * np.sin(2 * time)) / codec.sample_rate)
    assert len(onsets.onset_times(mel_of(glide, codec), codec)[0]) == 0


def test_onsets_do_not_depend_on_the_level():
    codec = codec_spec("16k")
    sound = scene("noise", codec)
    batch = torch.cat([mel_of(sound, codec), mel_of(0.3 * sound, codec)])
    loud, quiet = onsets.onset_times(batch, codec)
    assert onsets.onset_f1(quiet, loud) == 1.0


@pytest.mark.parametrize(
    ("times", "reference", "expected"),
    [
        ([], [], 1.0),
        ([], [1.0], 0.0),
        ([1.0], [], 0.0),
        ([1.0, 1.05], [1.02], 2 / 3),  # one event answers for one only
        ([1.0, 1.1], [0.95, 1.0], 1.0),  # nearest first would leave one over
        ([1.0], [1.1], 1.0),
        ([1.0], [1.101], 0.0),
        ([3.0, 1.0], [1.0, 3.0], 1.0),
    ],
)
def test_f1_matches_one_to_one(times, reference, expected):
    assert onsets.onset_f1(times, reference) == pytest.approx(expected)


def test_onset_matching_is_maximal():
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = rng.uniform(0, 1, rng.integers(1, 9)), rng.uniform(0, 1, rng.integers(1, 9))
        near = np.abs(a[:, None] - b[None]) <= 0.1
        assert onsets.count_matches(a, b) == near[linear_sum_assignment(near, maximize=True)].sum()


def test_mel_distances_by_hand():
    reference = torch.tensor([[[-1.0, -3.0], [-2.0, -2.2]]])
    mel = reference + torch.tensor([[[0.5, 2.0], [-0.1, 4.0]]])
    assert spectral.mel_l1(mel, reference).item() == pytest.approx((0.5 + 2 + 0.1 + 4) / 4)
    assert spectral.mel_l1_loud(mel, reference, 10.0).item() == pytest.approx((0.5 + 0.1) / 2)


def test_loud_cells_are_the_same_in_both_logarithms():
    common = torch.tensor([[[-1.0, -3.0, -2.21, -2.19]]])
    natural = common * math.log(10)
    distance = spectral.mel_l1_loud(natural + 1, natural, math.e)
    assert distance.item() == pytest.approx(1.0)
    assert spectral.loud_threshold(math.e) == pytest.approx(-5.0657, abs=1e-4)
    assert spectral.mel_l1_loud(common + 1, common, 10.0).item() == pytest.approx(1.0)


def test_a_clip_without_loud_cells_has_no_loud_distance():
    quiet = torch.full((2, 3, 4), -4.0)
    quiet[1, 0, 0] = 0.0
    distance = spectral.mel_l1_loud(quiet + 0.25, quiet, 10.0)
    assert math.isnan(distance[0].item())
    assert distance[1].item() == pytest.approx(0.25)
