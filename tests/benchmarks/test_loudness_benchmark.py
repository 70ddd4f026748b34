"""The benchmark of loudness: its videos are sparse and quiet between events, and its levels are those of the pauses."""

import json

import numpy as np
import pytest
import torch
from video_files import RATE, tone

from benchmarks.loudness import format_table, quiet_levels, write_videos
from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.media.audio_file import write_audio


@pytest.mark.slow
def test_the_videos_have_loud_and_quiet_windows_and_one_gain(tmp_path):
    write_videos(tmp_path, 2, 24.0)
    scans = [scan_video(path, ScanSettings()) for path in sorted(tmp_path.glob("*.mp4"))]
    peaks = [window.peak_db for scan in scans for window in scan.windows]
    assert min(peaks) < -30 and max(peaks) > -10
    assert all(0 < scan.gain_db < 25 for scan in scans), "the level is the events, not the room tone"


def write_media(folder):
    """A clip of a loud and a quiet second, and of both models: the base's pause is 10 dB louder than the adapter's."""
    folder.mkdir(parents=True)
    for sound, pause in (("original", 0.001), ("base", 0.1), ("adapted", 0.1 / 10**0.5)):
        waveform = np.concatenate([tone(1), tone(1, amplitude=pause)])
        write_audio(folder / f"001_{sound}.flac", torch.from_numpy(waveform), RATE)


def test_levels_are_those_of_the_original_s_quiet_frames(tmp_path):
    write_media(tmp_path / "media")
    assert np.median(list(quiet_levels(tmp_path / "media", "base"))) == pytest.approx(-23.0, abs=0.1)
    assert np.median(list(quiet_levels(tmp_path / "media", "adapted"))) == pytest.approx(-33.0, abs=0.1)


def test_the_table_has_a_row_per_sound(tmp_path):
    values = {"original": None, "base": 0.25, "adapted": 0.125}
    for way in ("video", "window"):
        write_media(tmp_path / f"{way}_run" / "report" / "media")
        metrics = dict.fromkeys(("near_silent", "mel_l1_loud", "onset_f1"), values)
        (tmp_path / f"{way}_run" / "metrics.json").write_text(json.dumps({"metrics": metrics}))
    assert format_table(tmp_path)[2:] == [
        "| original | -63.0 |  |  |  |",
        "| base | -23.0 | 0.250 | 0.250 | 0.250 |",
        "| with the adapter, `normalize: video` | -33.0 | 0.125 | 0.125 | 0.125 |",
        "| with the adapter, `normalize: window` | -33.0 | 0.125 | 0.125 | 0.125 |",
    ]
