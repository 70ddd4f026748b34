"""A corpus of containers, codecs and frame rates: every picture is there, in time with its sound, in all windows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from timed_videos import TimedVideo

pytestmark = pytest.mark.slow
NTSC, FILM = Fraction(30_000, 1001), Fraction(24_000, 1001)
H264 = {"preset": "veryfast"}
B_FRAMES = {"bf": "2"}
FIELDS = {"flags": "+ildct+ilme"}
SECONDS = 4.0


def uneven(low, high, seconds=SECONDS + 0.3):
    """Times of pictures `low` to `high` seconds apart."""
    steps = np.random.default_rng(0).uniform(low, high, 1000).cumsum().round(3)
    return [0.0, *(float(time) for time in steps[steps < seconds])]


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
    "interlaced.mkv": video(options={"preset": "veryfast", "flags": "+ildct+ilme", "x264-params": "tff=1"}),
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
