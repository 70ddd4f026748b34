"""Scans of video files: windows and audio levels."""

from __future__ import annotations

import numpy as np
import pytest
from video_files import RATE, grey_frames, tone

from mmaudio.data.clips import Clip
from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.evaluation.original_audio import read_original_audio
from mmaudio.media.mux import write_video


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "windows"), [(7.9, 0), (8.0, 1), (11.9, 1), (12.0, 2), (32.0, 7)])
def test_windows_of_8_s_every_4_s(tmp_path, seconds, windows):
    path = tmp_path / "a.mp4"
    write_video(path, grey_frames(round(seconds * 10), side=16), 10, tone(seconds, 8000), 8000)
    scan = scan_video(path, ScanSettings())
    assert [window.start for window in scan.windows] == [4.0 * index for index in range(windows)]
    assert bool(scan.reason) == (windows == 0)


def test_audio_levels_are_measured(tmp_path):
    sound = np.concatenate([np.zeros(RATE // 2, np.float32), tone(0.5)])
    write_video(tmp_path / "a.mp4", grey_frames(25), 25, sound, RATE)
    (window,) = scan_video(tmp_path / "a.mp4", ScanSettings(seconds=1.0)).windows
    assert window.peak_db == pytest.approx(-6, abs=1)
    assert window.rms_db == pytest.approx(-12, abs=0.5)
    assert window.silence == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_the_gain_is_the_same_however_the_video_is_cut(tmp_path):
    sound = np.concatenate([tone(2, amplitude=0.3), tone(4, amplitude=0.002), tone(2, amplitude=0.3)])
    write_video(tmp_path / "a.mp4", grey_frames(200, side=16), 25, sound, RATE)
    for settings in (ScanSettings(), ScanSettings(seconds=1.0, stride=0.5)):
        assert scan_video(tmp_path / "a.mp4", settings).gain_db == pytest.approx(20 * np.log10(0.95 / 0.3), abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("left", "right", "channel"), [(0.5, -0.5, 0), (0.25, -0.255, 0), (0.0, 0.5, None)])
def test_of_channels_that_cancel_each_other_one_is_used(tmp_path, left, right, channel):
    path, wave = tmp_path / "a.mp4", tone(4, amplitude=1.0)
    write_video(path, grey_frames(40, side=16), 10, np.stack([left * wave, right * wave]), RATE)
    scan = scan_video(path, ScanSettings(1.0, 1.0))
    assert (scan.reason, scan.channel) == ("", channel)
    level = abs(left) if channel == 0 else 0.25  # of the mean where one channel is silent
    assert scan.windows[0].peak_db == pytest.approx(20 * np.log10(level), abs=0.5)
    assert scan.gain_db == pytest.approx(20 * np.log10(0.95 / level), abs=0.5)
    note = "its channels cancel each other (one is inverted): channel 0 alone is used"
    assert scan.note == ("" if channel is None else note)
    clip = Clip("a_0", "a.mp4", 0.0, 1.0, "", "test", -3, -9, 0, gain_db=scan.gain_db, channel=scan.channel)
    (original,) = read_original_audio(tmp_path, [clip], RATE, RATE)
    assert float(original.abs().max()) == pytest.approx(0.95, abs=0.05), "evaluation hears the same channel"
