"""Presentation times of decoded frames: each counts once, at its instant, whatever the file's time stamps are."""

from __future__ import annotations

import pytest
from timed_videos import TimedVideo, packed

B_FRAMES = {"bf": "2"}
AVI = {
    "h264": TimedVideo(options={"preset": "veryfast"}),
    "mpeg4": TimedVideo("mpeg4", options=B_FRAMES),
    "mpeg2": TimedVideo("mpeg2video", options=B_FRAMES),
}


def check(video, path, seconds=0.5 / 25):
    """Every picture is there in its order, and with its sound, alike in all windows."""
    reading = video.read(path)
    assert reading.numbers == list(range(len(video.shown)))
    assert max(map(abs, reading.late)) < seconds
    assert max(map(abs, reading.offsets)) < seconds
    assert max(reading.offsets) - min(reading.offsets) < 0.002


@pytest.mark.parametrize("codec", [*AVI, "packed mpeg4"])
def test_an_avi_with_b_frames_is_read_in_order_and_in_sync(tmp_path, codec):
    """AVI has no presentation stamps; FFmpeg makes some up, in the order of decoding."""
    video = AVI[codec.removeprefix("packed ")]
    path = video.write(tmp_path / "a.avi")
    check(video, packed(path, tmp_path / "b.avi") if codec.startswith("packed") else path)
