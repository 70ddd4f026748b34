"""Scans of video files: windows and audio levels."""

from __future__ import annotations

import numpy as np
import pytest
from video_files import RATE, grey_frames, tone

from mmaudio.data.scan import ScanSettings, scan_video
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
def test_channels_that_cancel_each_other_are_named(tmp_path):
    left = tone(2)
    write_video(tmp_path / "inverted.mp4", grey_frames(50), 25, np.stack([left, -left]), RATE)
    write_video(tmp_path / "one.mp4", grey_frames(50), 25, np.stack([left, 0 * left]), RATE)
    assert scan_video(tmp_path / "inverted.mp4", ScanSettings(1.0, 1.0)).reason.startswith("its channels cancel")
    one = scan_video(tmp_path / "one.mp4", ScanSettings(1.0, 1.0))
    assert not one.reason and one.windows[0].peak_db > -15
