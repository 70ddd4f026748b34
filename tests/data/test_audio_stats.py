"""What is measured of a sound, window by window."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from corpus import Sound, write

from mmaudio.data.audio_stats import FLOOR_LUFS, heard, levels, lufs
from mmaudio.media.audio import Piece, read_audio, sound_blocks
from mmaudio.media.video import probe


def sine(amplitude, rate, seconds=4.0):
    return (amplitude * torch.sin(2 * math.pi * 997 * torch.arange(round(seconds * rate)) / rate)).float()


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("amplitude", [1.0, 0.1, 0.003])
def test_the_loudness_of_the_standards_own_tone(rate, amplitude):
    """997 Hz at full scale is -3.01 LUFS in one channel (ITU-R BS.1770)."""
    assert lufs(sine(amplitude, rate), rate) == pytest.approx(-3.01 + 20 * math.log10(amplitude), abs=0.1)


def test_quiet_parts_do_not_count_in_loudness():
    half = torch.cat([sine(0.1, 16_000, 4), torch.zeros(4 * 16_000)])
    assert lufs(half, 16_000) == pytest.approx(-23.0, abs=0.3)
    assert lufs(torch.zeros(16_000), 16_000) == lufs(torch.zeros(0), 16_000) == FLOOR_LUFS


def test_levels():
    wave = torch.cat([torch.zeros(8000), sine(0.5, 16_000, 0.5)])
    peak, rms, silence = levels(wave, 16_000, -60.0)
    assert (peak, rms) == (pytest.approx(-6.02, abs=0.02), pytest.approx(-12.04, abs=0.02))
    assert silence == pytest.approx(0.5)
    assert levels(torch.zeros(0), 16_000, -60.0) == (-120.0, -120.0, 1.0)


def test_windows_get_their_samples_whatever_the_pieces():
    ramp = torch.arange(100, dtype=torch.float32)
    full = ramp == 41
    pieces = [
        Piece(a, b, real=index != 1) for index, (a, b) in enumerate(zip(ramp.split(7), full.split(7), strict=True))
    ]
    got = list(heard(pieces, 10, [(0.0, 2.0), (1.0, 3.0), (4.0, 6.0), (9.0, 11.0)]))
    assert [(float(one.wave[0]), len(one.wave)) for one in got] == [(0, 20), (10, 20), (40, 20), (90, 10)]
    assert [one.missing for one in got] == pytest.approx([0.7, 0.4, 0.0, 1.0])
    assert [int(one.full.sum()) for one in got] == [0, 0, 1, 0]


def test_a_hole_is_silence_that_is_not_real(tmp_path):
    path = write(tmp_path / "a.mkv", sounds=[Sound("flac", hole=(3.0, 2.0))])
    info = probe(path)
    pieces = list(sound_blocks(info))
    missing = sum(len(piece.wave) for piece in pieces if not piece.real) / 16_000
    assert missing == pytest.approx(2.0, abs=0.01)
    waveform, rate = read_audio(path, info)
    assert waveform[round(3.2 * rate) : round(4.9 * rate)].abs().max() == 0
    assert torch.equal(torch.cat([piece.wave for piece in pieces]), waveform)


def test_clipping_is_seen_in_each_channel(tmp_path):
    one = np.zeros((2, 16_000), np.float32)
    one[0, :8000] = 1.0
    path = write(tmp_path / "a.mkv", seconds=1, sounds=[Sound("pcm_s16le", channels=2, wave=one)])
    (sound,) = heard(sound_blocks(probe(path)), 16_000, [(0.0, 1.0)])
    assert float(sound.wave.max()) == pytest.approx(0.5, abs=0.01)
    assert float(sound.full.double().mean()) == pytest.approx(0.5, abs=0.01)


def test_eight_channels_and_another_track(tmp_path):
    path = write(
        tmp_path / "a.mkv", seconds=2, sounds=[Sound("flac", 48_000, 8, seconds=2), Sound(seconds=2, rate=8_000)]
    )
    assert len(read_audio(path)[0]) == pytest.approx(96_000, abs=100)
    waveform, rate = read_audio(path, probe(path, track=1))
    assert rate == 8_000 and len(waveform) == pytest.approx(16_000, abs=1100)
