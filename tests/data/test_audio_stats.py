"""Audio levels, loudness and clipping of windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from video_corpus import Sound, write

from mmaudio.data.audio_stats import FLOOR_LUFS, integrated_loudness, measure_levels
from mmaudio.media.audio import AudioChunk, decode_audio, read_audio
from mmaudio.media.audio_windows import read_native_windows
from mmaudio.media.streams import StreamChoice
from mmaudio.media.video import probe


def sine(amplitude, rate, seconds=4.0):
    return (amplitude * torch.sin(2 * math.pi * 997 * torch.arange(round(seconds * rate)) / rate)).float()


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("amplitude", [1.0, 0.1, 0.003])
def test_the_loudness_of_the_standards_own_tone(rate, amplitude):
    """997 Hz at full scale is -3.01 LUFS in one channel (ITU-R BS.1770)."""
    assert integrated_loudness(sine(amplitude, rate), rate) == pytest.approx(
        -3.01 + 20 * math.log10(amplitude), abs=0.1
    )


def test_quiet_parts_do_not_count_in_loudness():
    half = torch.cat([sine(0.1, 16_000, 4), torch.zeros(4 * 16_000)])
    assert integrated_loudness(half, 16_000) == pytest.approx(-23.0, abs=0.3)
    assert integrated_loudness(torch.zeros(16_000), 16_000) == integrated_loudness(torch.zeros(0), 16_000) == FLOOR_LUFS


def test_levels_are_those_of_the_waveform():
    waveform = torch.cat([torch.zeros(8000), sine(0.5, 16_000, 0.5)])
    peak, rms, silence = measure_levels(waveform, 16_000, -60.0)
    assert (peak, rms) == (pytest.approx(-6.02, abs=0.02), pytest.approx(-12.04, abs=0.02))
    assert silence == pytest.approx(0.5)
    assert measure_levels(torch.zeros(0), 16_000, -60.0) == (-120.0, -120.0, 1.0)


def test_windows_do_not_depend_on_the_size_of_the_chunks():
    ramp = torch.arange(100, dtype=torch.float32)
    full_scale = ramp == 41
    chunks = [
        AudioChunk(a, b, index != 1, torch.ones(1))
        for index, (a, b) in enumerate(zip(ramp.split(7), full_scale.split(7), strict=True))
    ]
    windows = list(read_native_windows(chunks, 10, [(0.0, 2.0), (1.0, 3.0), (4.0, 6.0), (9.0, 11.0)]))
    first_and_length = [(float(window.waveform[0]), len(window.waveform)) for window in windows]
    assert first_and_length == [(0, 20), (10, 20), (40, 20), (90, 10)]
    assert [window.missing_seconds for window in windows] == pytest.approx([0.7, 0.4, 0.0, 1.0])
    assert [int(window.full_scale.sum()) for window in windows] == [0, 0, 1, 0]


@pytest.mark.slow
def test_a_gap_is_filled_with_silence_that_does_not_count_as_audio(tmp_path):
    path = write(tmp_path / "a.mkv", sounds=[Sound("flac", hole=(3.0, 2.0))])
    info = probe(path)
    chunks = list(decode_audio(info))
    missing = sum(len(chunk.waveform) for chunk in chunks if not chunk.is_audio) / 16_000
    assert missing == pytest.approx(2.0, abs=0.01)
    waveform, rate = read_audio(path, info)
    assert waveform[round(3.2 * rate) : round(4.9 * rate)].abs().max() == 0
    assert torch.equal(torch.cat([chunk.waveform for chunk in chunks]), waveform)


def test_clipping_is_detected_in_each_channel(tmp_path):
    stereo = np.zeros((2, 16_000), np.float32)
    stereo[0, :8000] = 1.0
    path = write(tmp_path / "a.mkv", seconds=1, sounds=[Sound("pcm_s16le", channels=2, wave=stereo)])
    (window,) = read_native_windows(decode_audio(probe(path)), 16_000, [(0.0, 1.0)])
    assert float(window.waveform.max()) == pytest.approx(0.5, abs=0.01)
    assert float(window.full_scale.double().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_eight_channels_and_the_second_track_are_measured(tmp_path):
    path = write(
        tmp_path / "a.mkv", seconds=2, sounds=[Sound("flac", 48_000, 8, seconds=2), Sound(seconds=2, rate=8_000)]
    )
    assert len(read_audio(path)[0]) == pytest.approx(96_000, abs=100)
    waveform, rate = read_audio(path, probe(path, StreamChoice(audio_track=1)))
    assert rate == 8_000 and len(waveform) == pytest.approx(16_000, abs=1100)
