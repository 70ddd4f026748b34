"""A corpus of containers, codecs and frame rates: every picture is there, in time with its sound, in all windows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from timed_videos import SIZE, TimedVideo, from_key_picture, numbered, read_back, read_number, rustle, with_edits
from video_corpus import write

from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.video import probe

pytestmark = pytest.mark.slow
NTSC, FILM = Fraction(30_000, 1001), Fraction(24_000, 1001)
H264 = {"preset": "veryfast"}
B_FRAMES = {"bf": "2"}
FIELDS = {"flags": "+ildct+ilme"}
INTERLACED = {**H264, **FIELDS, "x264-params": "tff=1"}
OPEN_GOP = {**H264, "x264-params": "open-gop=1:keyint=25:min-keyint=25:bframes=3:scenecut=0"}
WRAP = 2**33 // 3600 / 25
"""The last whole picture before the time stamps of MPEG-TS begin anew, in seconds."""
SECONDS = 4.0


def uneven(low, high, seconds=SECONDS + 0.3):
    """Times of pictures `low` to `high` seconds apart."""
    steps = np.random.default_rng(0).uniform(low, high, 1000).cumsum().round(3)
    return [0.0, *(float(time) for time in steps[steps < seconds])]


def jump(at, by):
    """Times of pictures at 25 a second that jump ahead."""
    return [index / 25 + by * (index / 25 >= at) for index in range(round((SECONDS + 0.3 - by) * 25))]


def video(codec="libx264", audio="pcm_s16le", fps=25, muxer=None, options=None, **other):
    """A video of the corpus."""
    options = H264 if codec == "libx264" and options is None else options
    return TimedVideo(codec, audio, fps=fps, seconds=SECONDS, muxer=muxer, options=options, **other)


CORPUS = {
    "12.mp4": video(audio="aac", fps=12),
    "film.mp4": video(audio="aac", fps=FILM),
    "24.mkv": video(fps=24),
    "25.mp4": video(audio="aac"),
    "ntsc.mp4": video(audio="aac", fps=NTSC),
    "30.mov": video(fps=30),
    "50.mkv": video(fps=50),
    "59.94.mkv": video(fps=Fraction(60_000, 1001)),
    "60.mov": video(fps=60),
    "120.mkv": video(fps=120),
    "no edit list.mp4": video(audio="aac", options={"preset": "veryfast", "bf": "0"}),
    "hevc.mkv": video("libx265", fps=24),
    "vp8.webm": video("libvpx", "libopus"),
    "vp9.webm": video("libvpx-vp9", "libopus", 30),
    "mpeg4.mkv": video("mpeg4", options=B_FRAMES),
    "mpeg2.mpg": video("mpeg2video", "mp2", options=B_FRAMES),
    "mpeg2.ts": video("mpeg2video", "mp2", muxer="mpegts", options=B_FRAMES),
    "h264.ts": video(audio="mp2", muxer="mpegts"),
    "h264.flv": video(audio="libmp3lame", rate=44_100),
    "starts at 5 s.ts": video(audio="mp2", muxer="mpegts", first=5.0),
    "starts at 3 s.mkv": video(first=3.0),
    "starts at 2 s.mov": video(first=2.0),
    "interlaced.mpg": video("mpeg2video", "mp2", options=FIELDS),
    "interlaced.mkv": video(options=INTERLACED),
    "uneven.mkv": video(stamps=uneven(0.01, 0.1)),
    "uneven.mp4": video(audio="aac", stamps=uneven(0.02, 0.06)),
    "h264.avi": video(),
    "60.avi": video(fps=60),
    "mpeg4.avi": video("mpeg4", fps=NTSC, options=B_FRAMES),
    "mjpeg.avi": video("mjpeg", fps=15, pixels="yuvj420p"),
    "h264.wmv": video(muxer="asf"),
    "mpeg2.wmv": video("mpeg2video", muxer="asf", fps=30, options=B_FRAMES),
    "wmv2.wmv": video("wmv2", muxer="asf"),
    "prores.mov": video("prores_ks", pixels="yuv422p10le"),
    "ffv1.mkv": video("ffv1", "flac", fps=48),
    "h264.nut": video(),
    "stamps wrap.ts": video(audio="mp2", muxer="mpegts", first=WRAP - 2),
    "stamps wrap at once.ts": video("mpeg2video", "mp2", muxer="mpegts", first=WRAP - 0.04, options=B_FRAMES),
    "jump.mkv": video(stamps=jump(1.4, 0.7)),
    "jump.ts": video(audio="mp2", muxer="mpegts", stamps=jump(1.4, 0.7)),
    "jump.avi": video(stamps=jump(1.4, 0.7)),
    "interlaced.ts": video(audio="mp2", muxer="mpegts", options=INTERLACED),
    "interlaced.avi": video(options=INTERLACED),
    "open gop.ts": video(audio="mp2", muxer="mpegts", options=OPEN_GOP),
    "open gop.avi": video(options=OPEN_GOP),
}


def test_the_corpus_is_wide():
    assert len(CORPUS) >= 30


@pytest.mark.parametrize("name", CORPUS)
def test_every_picture_is_in_time_with_its_sound(tmp_path, name):
    video = CORPUS[name]
    reading = video.read(video.write(tmp_path / name))
    half_frame = 0.5 / float(video.fps if video.stamps is None else 25)
    inside = [number for number, time in enumerate(video.shown) if time - video.shown[0] < SECONDS - 1 / 250]
    assert reading.numbers[: len(inside)] == inside
    assert max(map(abs, reading.late)) < half_frame
    assert max(map(abs, reading.offsets)) < half_frame
    assert max(reading.offsets) - min(reading.offsets) < 0.002


EDITS = {
    "trimmed.mp4": [(3.0, 1.0)],
    "late and trimmed.mp4": [(0.5, None), (3.0, 1.0)],
}
"""Edit lists: seconds of each edit, and where in the file it begins; None shows nothing."""


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_list_is_followed_by_picture_and_sound(tmp_path, name):
    edited = video(audio="aac", options={**H264, "bf": "2"})
    path = with_edits(edited.write(tmp_path / name), EDITS[name])
    trimmed = replace_times(edited.shown, 1.0)
    reading = read_back(path, trimmed, rustle(SECONDS, edited.rate)[edited.rate :], edited.rate, 2.0)
    assert reading.numbers[:50] == list(range(25, 75))
    assert max(map(abs, reading.late)) < 0.02 and max(map(abs, reading.offsets)) < 0.02


def replace_times(shown, cut):
    """The times of pictures of which `cut` seconds are cut off; that of the first, which nobody sees, is 0."""
    return [0.0, *(time - cut for time in shown[1:])]


def test_of_a_file_cut_within_open_groups_what_can_be_decoded_is_in_time(tmp_path):
    whole = video(audio="aac", options=OPEN_GOP)
    path = from_key_picture(whole.write(tmp_path / "whole.mp4"), tmp_path / "cut.mkv", 1)
    trimmed = replace_times(whole.shown, 1.0)
    reading = read_back(path, trimmed, rustle(SECONDS, whole.rate)[whole.rate :], whole.rate, 2.0)
    assert reading.numbers[:50] == list(range(25, 75))
    assert max(map(abs, reading.late)) < 0.02 and max(map(abs, reading.offsets)) < 0.02


@pytest.mark.parametrize(
    ("name", "codec", "muxer", "pixels", "reason"),
    [
        ("a.gif", "gif", "gif", "rgb8", "no video file (.gif)"),
        ("raw.h264", "libx264", "h264", "yuv420p", "no video file (.h264)"),
        ("raw.mp4", "libx264", "h264", "yuv420p", "no sound"),
    ],
)
def test_streams_without_sound_or_stamps_are_read_in_order_and_left_out_by_name(
    tmp_path, name, codec, muxer, pixels, reason
):
    path = write(tmp_path / name, codec, (), 2.0, 25, SIZE, pixels, numbered, muxer)
    assert scan_video(path, ScanSettings(seconds=1.0)).reason == reason
    grid = FrameGrid(25, 25, read_number)
    windows = read_frame_windows(probe(path), [0.0, 1.0], [grid])
    assert [int(number) for window in windows for number in window.frames[0]] == list(range(50))
