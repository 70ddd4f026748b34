"""Presentation times of decoded frames: each counts once, at its instant, whatever the file's time stamps are."""

from __future__ import annotations

from dataclasses import replace

import av
import pytest
from timed_videos import TimedVideo, copied, packed

from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.media.video import timing_key

pytestmark = pytest.mark.slow  # a second each
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


@pytest.mark.parametrize("codec", ["h264", "mpeg2"])
@pytest.mark.parametrize("suffix", [".wmv", ".mkv", ".mp4"])
def test_a_wmv_with_b_frames_and_copies_of_it_are_read_in_order_and_in_sync(tmp_path, codec, suffix):
    """FFmpeg writes the decoding stamps into an ASF, and reads presentation stamps in the order of decoding."""
    video = replace(AVI[codec], muxer="asf")
    path = video.write(tmp_path / "a.wmv")
    check(video, path if suffix == ".wmv" else copied(path, tmp_path / f"a{suffix}"))


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".avi"])
@pytest.mark.parametrize("codec", ["h264", "packed mpeg4"])
def test_a_copy_of_an_avi_with_b_frames_is_read_in_order_and_in_sync(tmp_path, codec, suffix):
    video = AVI[codec.removeprefix("packed ")]
    path = video.write(tmp_path / "a.avi")
    check(
        video, copied(packed(path, tmp_path / "b.avi") if codec.startswith("packed") else path, tmp_path / f"c{suffix}")
    )


def restamped(video, path, seconds):
    """A copy of `video` in which some packets' time stamps are moved: `seconds` by the packet's number."""
    source = video.write(path.with_suffix(".mkv"))
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        streams = {stream.index: written.add_stream_from_template(stream) for stream in read.streams}
        number = 0
        for packet in read.demux():
            if packet.size:
                if packet.stream.type == "video":
                    packet.pts += round(seconds.get(number, 0) / packet.time_base)
                    number += 1
                packet.stream = streams[packet.stream_index]
                written.mux(packet)
    return path


WRONG = {
    "one ahead": {60: 2.0},
    "two in a row": {60: 2.0, 61: 2.0},
    "three of several times": {60: 1.0, 61: 2.5, 62: 0.5},
    "the first of a second far ahead": {25: 30.0},
}


@pytest.mark.parametrize("name", WRONG)
def test_frames_with_wrong_time_stamps_count_once_in_their_places(tmp_path, name):
    video = TimedVideo("mpeg2video", "mp2")
    path = restamped(video, tmp_path / "a.ts", WRONG[name])
    check(video, path)
    scan = scan_video(path, ScanSettings(seconds=2.0, stride=2.0))
    assert [window.start for window in scan.windows if not window.reason] == [0.0, 2.0, 4.0]
    assert scan.note == f"frames out of turn, which were put in their places: {len(WRONG[name])}"


def test_the_note_says_what_gives_the_times(tmp_path):
    path = AVI["h264"].write(tmp_path / "a.avi")
    assert scan_video(path, ScanSettings(2.0)).note == (
        "time stamps out of order: its frames are timed by decoding stamps"
    )
    path = TimedVideo("mpeg4").write(tmp_path / "b.avi")
    assert scan_video(path, ScanSettings(2.0)).note == ""


def test_only_scans_and_features_of_files_without_order_become_stale(tmp_path):
    """Their keys are those of before for all other files."""
    assert timing_key(AVI["h264"].write(tmp_path / "a.avi"))
    assert not timing_key(TimedVideo("mpeg4").write(tmp_path / "b.avi"))
    assert not timing_key(AVI["h264"].write(tmp_path / "c.mkv"))
    assert not timing_key(tmp_path / "absent.avi")
