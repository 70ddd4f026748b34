"""The gain of a whole video: the level of its loud seconds, whatever one knock or one pause holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from video_files import RATE, grey_frames, tone

from mmaudio.media.audio import AudioChunk, pad_and_normalize
from mmaudio.media.audio_windows import read_audio_windows
from mmaudio.media.gain import MAX_BOOST_DB, LevelMeter, video_gain_db
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe


def decibels(level):
    """The gain that brings `level` to a peak of 0.95."""
    return 20 * math.log10(0.95 / level)


@pytest.mark.parametrize(
    ("peaks", "level"),
    [
        ([0.1, 0.2, 0.2, 0.2, 0.1, 0.1], 0.2),
        ([0.2, 0.2, 0.9, 0.2, 0.1, 0.2], 0.9 / 10 ** (12 / 20)),  # a knock, 13 dB above the rest
        ([0.2, 0.3, 0.9, 0.8, 0.3, 0.3], 0.3),  # a knock that lies across two seconds
        ([0.01, 0.01, 0.5, 0.01, 0.01, 0.01, 0.45, 0.01], 0.45),  # two barks
        ([0.001] * 5 + [0.5] + [0.001] * 5, 0.5 / 10 ** (12 / 20)),  # one bark: its pauses stay quiet
        ([0.01, 0.3, 0.4, 0.35, 0.01], 0.3),  # a sound of three seconds
        ([0.3], 0.3),
        ([0.4, 0.2], 0.4),
    ],
)
def test_the_gain_is_that_of_the_loud_seconds(peaks, level):
    assert video_gain_db(peaks) == pytest.approx(decibels(level), abs=0.006)


@pytest.mark.parametrize("peaks", [[], [0.0] * 5, [1e-9] * 3])
def test_silence_is_not_amplified(peaks):
    assert video_gain_db(peaks) == 0


@pytest.mark.parametrize("length", [1, 99, 100, 250, 1000])
def test_peaks_are_those_of_whole_seconds_however_the_audio_is_cut(length):
    waveform = torch.rand(1234, generator=torch.Generator().manual_seed(0)) - 0.5
    meter = LevelMeter(100)
    chunks = [
        AudioChunk(piece, torch.zeros(len(piece), dtype=torch.bool), True, torch.ones(1))
        for piece in waveform.split(length)
    ]
    assert list(meter.watch(chunks)) == chunks
    assert meter.peaks == [float(block.abs().max()) for block in waveform.split(100)]


@pytest.mark.parametrize(
    ("gains", "channel"),
    [
        ([1.0, -1.0], 0),
        ([0.5, -0.51], 0),
        ([0.0, 0.9, -0.92], 1),
        ([0.001, -0.1, 0.1, 0.0, 0.0, 0.0], 1),
        ([1.0], None),
        ([1.0, 0.0], None),
        ([0.0, 0.0], None),
        ([1.0, *[0.0] * 31], None),
        ([1.0, 1.0], None),
        ([1.0, -0.5], None),
    ],
)
def test_a_channel_is_used_alone_where_the_channels_cancel_each_other(gains, channel):
    noise = torch.rand(1000, generator=torch.Generator().manual_seed(0)) - 0.5
    channels = torch.tensor(gains)[:, None] * noise
    meter = LevelMeter(100)
    for piece in channels.split(300, dim=1):
        silence = torch.zeros(piece.shape[1], dtype=torch.bool)
        list(meter.watch([AudioChunk(piece.mean(0), silence, True, piece.square().sum(1))]))
    assert meter.channel_instead_of_mean() == channel


def test_a_window_with_a_gain_is_at_most_as_loud_as_the_peak():
    window = torch.tensor([0.1, -0.2, 0.05])
    torch.testing.assert_close(pad_and_normalize(window, 3, gain_db=6.0), window * 10**0.3)
    assert pad_and_normalize(window, 3, gain_db=40.0).abs().max() == pytest.approx(0.95)
    torch.testing.assert_close(pad_and_normalize(window, 3, gain_db=0.0), window)
    torch.testing.assert_close(pad_and_normalize(window, 3, peak=None, gain_db=40.0), window * 100)


def test_a_quiet_window_stays_as_quiet_as_it_is_beside_the_loud_ones(tmp_path):
    sound = np.concatenate([tone(2, amplitude=0.4), tone(2, amplitude=0.002)])
    write_video(tmp_path / "a.mp4", grey_frames(100), 25, sound, RATE)
    info = probe(tmp_path / "a.mp4")
    gains_db = [MAX_BOOST_DB / 2] * 2
    loud, quiet = read_audio_windows(info, [0.5, 2.5], RATE, RATE, gains_db=gains_db)
    assert loud.abs().max() == pytest.approx(0.4 * 10**0.3, rel=0.05)
    assert quiet.abs().max() == pytest.approx(0.002 * 10**0.3, rel=0.3)
    assert next(read_audio_windows(info, [2.5], RATE, RATE)).abs().max() == pytest.approx(0.95)
