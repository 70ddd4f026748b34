"""Loudness of what is written, and the video's own sound under it: no sample is clipped."""

import numpy as np
import pyloudnorm
import pytest
import torch
from video_files import tone, write_tone_video

from mmaudio.errors import ConfigError, DataError
from mmaudio.generation.audio_mix import PEAK, AudioMix

RATE = 16_000


def noise(seconds, scale):
    return scale * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(0)).clamp(-3, 3)


@pytest.mark.parametrize(("scale", "target"), [(0.001, -23.0), (0.3, -23.0), (0.05, -30.0)])
def test_the_result_has_the_loudness(scale, target):
    mixed, notes = AudioMix(loudness=target).apply(torch.stack([noise(3, scale), noise(3, scale / 2)]), RATE)
    assert notes == []
    for waveform in mixed:
        meter = pyloudnorm.Meter(RATE, filter_class="DeMan")
        assert meter.integrated_loudness(waveform.double().numpy()) == pytest.approx(target, abs=0.01)


def test_louder_than_its_peak_allows_is_said_and_not_clipped():
    waveform = noise(3, 0.01)
    waveform[RATE] = 0.9
    mixed, notes = AudioMix(loudness=-14.0).apply(waveform[None], RATE)
    assert mixed.abs().max() == pytest.approx(PEAK)
    torch.testing.assert_close(mixed[0] / mixed[0, RATE], waveform / waveform[RATE])
    assert len(notes) == 1 and notes[0].endswith("LUFS instead of -14: louder, its peak would clip")


def test_silence_stays_as_it_is():
    mixed, notes = AudioMix(loudness=-23.0).apply(torch.zeros(1, RATE), RATE)
    assert not mixed.any() and notes == ["too quiet to have a loudness; it is as generated"]


def test_without_settings_nothing_changes():
    waveform = noise(1, 0.9)[None]
    assert AudioMix().apply(waveform, RATE)[0] is waveform


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_tone_video(tmp_path_factory.mktemp("video") / "a.mp4", 13)


def test_the_original_lies_under_the_new_sound(video):
    """Beyond a block that is resampled at once, from the beginning that was asked for, and until it ends."""
    generated = torch.zeros(1, 14 * RATE)
    mixed, _ = AudioMix(original_db=-12.0).apply(generated, RATE, video, start=0.5)
    expected = 10 ** (-12 / 20) * tone(13)[RATE // 2 :]
    heard = mixed[0, : len(expected)].numpy()
    inside = slice(RATE // 10, len(expected) - RATE // 10)  # AAC changes a beginning and an end
    gain = np.dot(heard[inside], expected[inside]) / np.dot(expected[inside], expected[inside])
    assert gain == pytest.approx(1, abs=0.02)
    assert not mixed[0, round(12.7 * RATE) :].any()


def test_a_mix_that_would_clip_is_turned_down(video):
    generated = torch.from_numpy(tone(2, amplitude=0.9))[None]
    mixed, notes = AudioMix(original_db=0.0).apply(generated, RATE, video)
    assert mixed.abs().max() == pytest.approx(PEAK)
    assert len(notes) == 1 and notes[0].startswith("turned down by ") and notes[0].endswith("or the mix would clip")


def test_a_video_without_sound_is_said(tmp_path):
    silent = write_tone_video(tmp_path / "silent.mp4", 1, sound=False)
    with pytest.raises(DataError, match=r"silent\.mp4: no sound of its own to keep"):
        AudioMix(original_db=-12.0).check_source(silent)
    mixed, notes = AudioMix(original_db=-12.0).apply(torch.zeros(1, RATE), RATE, silent)
    assert not mixed.any() and notes == ["the video has no sound of its own to keep"]
    with pytest.raises(ConfigError, match="no video whose sound"):
        AudioMix(original_db=-12.0).check_source(None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loudness": 3.0}, "--loudness 3: LUFS from -60 to -5"),
        ({"loudness": float("nan")}, "--loudness nan"),
        ({"original_db": -90.0}, "--keep-original -90: dB from -60 to 12"),
    ],
)
def test_senseless_values_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        AudioMix(**settings)
