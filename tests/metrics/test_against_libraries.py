"""Spectral distances, loudness, onsets and diversity against independent implementations."""

import math

import auraloss
import librosa
import numpy as np
import pyloudnorm
import pytest
import torch
from scipy.signal import correlate

from mmaudio.features.mel import build_mel
from mmaudio.metrics import diversity, loudness, onsets, spectral
from mmaudio.model.spec import codec_spec

RATES = (16_000, 44_100)


def sound(kind: str, rate: int, seed: int = 0) -> np.ndarray:
    """Two seconds: noise, a chord with its decay, steps (bursts of noise over a hum), or a rising chirp."""
    rng = np.random.default_rng(seed)
    time = np.arange(2 * rate) / rate
    noise = rng.normal(size=len(time))
    steps = sum(np.where(time > at, np.exp(-(time - at) / 0.05), 0) for at in (0.3 + 0.01 * seed, 0.8, 1.45))
    return {
        "noise": 0.1 * noise,
        "chord": sum(0.2 * np.sin(2 * np.pi * (220 + 20 * seed) * k * time) * np.exp(-time * k) for k in (1, 2, 3)),
        "steps": 0.5 * noise * steps + 0.02 * np.sin(2 * np.pi * 90 * time) + 1e-3 * noise,
        "chirp": 0.3 * np.sin(2 * np.pi * (200 + (700 + 50 * seed) * time) * time),
    }[kind].astype(np.float32)


KINDS = ("noise", "chord", "steps", "chirp")


@pytest.mark.parametrize("kind", KINDS)
def test_stft_distance_is_that_of_auraloss(kind):
    x, y = (torch.from_numpy(sound(kind, 16_000, seed)) for seed in (0, 1))
    theirs = auraloss.freq.MultiResolutionSTFTLoss()
    for audio, reference in ((x, y), (x, 0.3 * x)):
        expected = float(theirs(audio[None, None], reference[None, None]))
        assert float(spectral.stft_distance(audio[None], reference[None])) == pytest.approx(expected, rel=1e-3)
    assert float(spectral.stft_distance(x[None], x[None])) == 0


def test_stft_distance_is_clip_by_clip():
    x, y = (torch.stack([torch.from_numpy(sound(kind, 16_000, seed)) for kind in KINDS]) for seed in (0, 1))
    single = [float(spectral.stft_distance(a[None], b[None])) for a, b in zip(x, y, strict=True)]
    assert spectral.stft_distance(x, y).tolist() == pytest.approx(single, rel=1e-5)


def test_a_silent_original_has_no_stft_distance():
    """Divided by next to nothing it would be 10^4, and its clip the whole of a mean."""
    wave = torch.from_numpy(sound("noise", 16_000))
    distances = spectral.stft_distance(torch.stack([wave, wave]), torch.stack([torch.zeros_like(wave), 0.3 * wave]))
    assert math.isnan(distances[0]) and 0 < distances[1] < 10
    assert math.isnan(spectral.stft_distance(wave[None], torch.full_like(wave, 9e-7)[None]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", RATES)
def test_centroid_and_bandwidth_are_those_of_librosa(kind, rate):
    wave = sound(kind, rate)
    summed = np.abs(librosa.stft(wave.astype(np.float64), n_fft=2048, hop_length=512, pad_mode="reflect")).sum(
        1, keepdims=True
    )
    centroid, bandwidth = spectral.centroid_and_bandwidth(torch.from_numpy(wave[None]), rate)
    assert float(centroid) == pytest.approx(librosa.feature.spectral_centroid(S=summed, sr=rate).item(), rel=1e-6)
    assert float(bandwidth) == pytest.approx(librosa.feature.spectral_bandwidth(S=summed, sr=rate).item(), rel=1e-6)


def test_the_centroid_of_a_tone_is_its_frequency_and_silence_has_none():
    time = torch.arange(32_000) / 16_000
    tone = 0.5 * torch.sin(2 * math.pi * 1000 * time)
    centroid, bandwidth = spectral.centroid_and_bandwidth(torch.stack([tone, torch.zeros(32_000)]), 16_000)
    assert float(centroid[0]) == pytest.approx(1000, rel=0.05)  # the tone is cut off at its ends
    assert centroid[1].isnan() and bandwidth[1].isnan()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gain", [1.0, 0.05])
def test_loudness_is_that_of_pyloudnorm(kind, rate, gain):
    wave = gain * sound(kind, rate)
    expected = pyloudnorm.Meter(rate, filter_class="DeMan").integrated_loudness(wave)
    assert float(loudness.loudness(torch.from_numpy(wave[None]), rate)) == pytest.approx(expected, abs=1e-3)


def test_k_weighting_at_48_khz_is_the_standards_own_table():
    shelf, high_pass = loudness.k_weighting(48_000)
    table = [1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585]
    assert shelf == pytest.approx(table, abs=1e-9)
    assert high_pass == pytest.approx([1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621], abs=1e-9)


def test_loudness_of_the_standards_own_tone_and_of_silence():
    time = np.arange(8 * 44_100) / 44_100
    tone = torch.from_numpy(np.sin(2 * np.pi * 997 * time))[None]  # BS.1770: 0 dBFS in one channel is -3.01 LUFS
    assert float(loudness.loudness(tone, 44_100)) == pytest.approx(-3.01, abs=0.01)
    assert float(loudness.loudness(0.1 * tone, 44_100)) == pytest.approx(-23.01, abs=0.01)
    assert float(loudness.loudness(torch.zeros(1, 16_000), 16_000)) == loudness.ABSOLUTE_GATE
    assert math.isnan(float(loudness.loudness(tone[:, :4000], 44_100)))


def test_near_silence_counts_only_where_the_original_is_audible():
    rate = 16_000
    original = torch.from_numpy(np.tile(sound("noise", rate), 2))  # 4 s
    original[:rate] = 0
    half = original.clone()
    half[2 * rate :] = 1e-4 * half[2 * rate :]
    shares = loudness.near_silent(torch.stack([original, half, torch.zeros(4 * rate)]), original, rate)
    assert shares.tolist() == pytest.approx([0, 2 / 3, 1], abs=0.01)
    assert loudness.near_silent(half[None], torch.zeros(4 * rate), rate).isnan().all()


def test_levels_are_root_mean_squares():
    time = torch.arange(16_000) / 16_000
    tone = 0.1 * torch.sin(2 * math.pi * 400 * time)
    assert loudness.frame_levels(tone[None], 16_000)[0].tolist() == pytest.approx([20 * math.log10(0.1 / 2**0.5)] * 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["16k", "44k"])
@pytest.mark.parametrize("seconds", [-0.5, -0.1, 0.0, 0.25, 0.8])
def test_the_lag_of_a_shifted_sound_is_its_shift(name, seconds):
    codec = codec_spec(name)
    rng = np.random.default_rng(0)
    original = 1e-3 * rng.normal(size=8 * codec.sample_rate).astype(np.float32)
    for at in (1.2, 2.0, 3.7, 4.1, 6.2):
        start = round(at * codec.sample_rate)
        original[start : start + 2000] += 0.5 * rng.normal(size=2000) * np.exp(-np.arange(2000) / 500)
    shifted = np.roll(original, round(seconds * codec.sample_rate))
    mels = build_mel(name)(torch.from_numpy(np.stack([original, shifted])).float())
    envelopes = onsets.onset_envelope(mels, codec)
    frame = codec.hop_length / codec.sample_rate
    lag = float(onsets.onset_lag(envelopes[1:], envelopes[0], frame))
    assert lag == pytest.approx(seconds, abs=frame)
    full = correlate(envelopes[1].numpy(), envelopes[0].numpy())
    assert lag == pytest.approx((full.argmax() - envelopes.shape[1] + 1) * frame)
    theirs = [
        librosa.onset.onset_strength(y=wave, sr=codec.sample_rate, hop_length=codec.hop_length)
        for wave in (original, shifted)
    ]
    full = correlate(theirs[1], theirs[0])
    assert lag == pytest.approx((full.argmax() - len(theirs[0]) + 1) * frame, abs=2 * frame)


def test_without_onsets_there_is_no_lag_and_ties_take_the_smallest():
    envelope = torch.zeros(3, 100)
    envelope[1, [20, 40, 60, 80]] = 1.0
    envelope[2, [30, 50, 70]] = 1.0
    lags = onsets.onset_lag(envelope, envelope[1], 0.01)
    assert lags[0].isnan() and lags[1:].tolist() == pytest.approx([0.0, -0.1])
    assert onsets.onset_lag(envelope, envelope[0], 0.01).isnan().all()


@pytest.mark.slow
def test_onsets_are_those_of_librosa():
    codec = codec_spec("16k")
    wave = sound("steps", 16_000)
    times = onsets.onset_times(build_mel("16k")(torch.from_numpy(wave)[None]), codec)[0]
    theirs = librosa.onset.onset_detect(y=wave, sr=16_000, hop_length=256, units="time", delta=0.2)
    precision, recall = onsets.precision_and_recall(times, theirs, 0.05)
    assert (precision, recall) == (1.0, 1.0) and len(times) >= 3


@pytest.mark.parametrize(
    ("times", "reference", "expected"),
    [([], [], (1, 1)), ([], [1.0], (0, 0)), ([1.0], [], (0, 0)), ([1.0, 2.0, 3.0], [1.05, 5.0], (1 / 3, 1 / 2))],
)
def test_precision_and_recall(times, reference, expected):
    assert onsets.precision_and_recall(times, reference) == pytest.approx(expected)
    harmonic = 0.0 if sum(expected) == 0 else 2 * expected[0] * expected[1] / sum(expected)
    assert onsets.onset_f1(times, reference) == pytest.approx(harmonic)


def test_identical_samples_are_duplicates():
    mel = torch.randn(4, 80, 50, generator=torch.Generator().manual_seed(0))
    mel[1] = mel[0] + 0.01
    distances = diversity.sample_distances(mel, 10.0)
    assert len(distances) == 6 and distances[0] == pytest.approx(0.01, rel=1e-4)
    assert diversity.duplicates(distances) == pytest.approx(1 / 6)
    assert diversity.diversity(distances) == pytest.approx(np.mean(distances))
    natural = diversity.sample_distances(mel * math.log(10), math.e)
    assert natural == pytest.approx(distances, rel=1e-5)
    assert math.isnan(diversity.diversity(diversity.sample_distances(mel[:1], 10.0))) and math.isnan(
        diversity.duplicates([])
    )
