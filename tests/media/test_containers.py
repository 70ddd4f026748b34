"""New audio beside a copied video stream, for every kind of file that users have."""

from __future__ import annotations

import av
import numpy as np
import pytest
from video_files import RATE, rotated_video, tone, write_encoded_video, write_tone_video

from mmaudio.errors import DataError, MMAudioError
from mmaudio.media import video
from mmaudio.media.containers import CONTAINERS, can_hold_video, choose_suffix
from mmaudio.media.mux import mux_audio
from mmaudio.media.video import probe

QUIET = {"x265-params": "log-level=none:pools=none"}
KINDS = [
    ("a.mp4", "mp4", "libx264", {}, ".mp4"),
    ("a.m4v", "mp4", "libx265", QUIET, ".m4v"),
    ("a.mp4", "mp4", "libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}, ".mp4"),
    ("a.mov", "mov", "libx264", {}, ".mov"),
    ("a.mkv", "matroska", "libx264", {}, ".mkv"),
    ("a.webm", "webm", "libvpx-vp9", {"cpu-used": "8"}, ".webm"),
    ("a.webm", "webm", "libvpx", {}, ".webm"),
    ("a.avi", "avi", "mpeg4", {"bf": "2"}, ".mp4"),
    ("a.avi", "avi", "libx264", {}, ".mp4"),
    ("a.avi", "avi", "libvpx", {}, ".mkv"),
    ("a.mts", "mpegts", "libx264", {}, ".mp4"),
    ("a.mpg", "mpeg", "mpeg2video", {"bf": "2"}, ".mp4"),
    ("a.flv", "flv", "libx264", {}, ".mp4"),
    ("a.3gp", "3gp", "libx264", {}, ".mp4"),
    ("a.wmv", "asf", "wmv2", {}, ".wmv"),
    ("a.mp4", "webm", "libvpx", {}, ".mkv"),
]
"""File, its actual muxer and encoder, and the suffix of the result."""


def read_frames(path):
    """(seconds from the first frame, mean level) of every frame, and the sizes of the packets."""
    info = probe(path)
    levels = [
        (frame.time - info.start_time, frame.to_ndarray(format="rgb24").mean()) for frame in video.read_frames(info)
    ]
    with av.open(str(path)) as container:
        return np.array(levels), [packet.size for packet in container.demux(video=0) if packet.size]


def onset(path):
    """Start and end of the audio in seconds after the first frame, and its codec."""
    time, blocks = None, []
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="flt", layout="mono")
        for frame in container.decode(stream):
            time = frame.time if time is None and frame.pts is not None else time
            blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
        loud = np.flatnonzero(np.abs(np.concatenate(blocks)) > 0.25)
        start = (time or 0.0) - probe(path).start_time
        return start + loud[0] / stream.rate, start + loud[-1] / stream.rate, stream.codec_context.name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "muxer", "encoder", "options", "suffix"), KINDS)
def test_the_frames_are_copied_and_the_audio_is_in_sync(tmp_path, name, muxer, encoder, options, suffix):
    rate = 44_100  # which Opus does not have: it is resampled
    source = write_encoded_video(tmp_path / name, muxer, encoder, **options)
    assert choose_suffix(source) == suffix
    output = tmp_path / f"output{suffix}"
    sound = tone(2, rate)
    sound[:rate] = 0
    mux_audio(source, sound, rate, output)
    before, after = read_frames(source), read_frames(output)
    assert len(after[0]) == 50
    with av.open(str(output)) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps == sorted(set(stamps)), "every player shows them in order"
    np.testing.assert_allclose(after[0][:, 0], before[0][:, 0], atol=2e-3)  # Matroska counts milliseconds
    np.testing.assert_array_equal(after[0][:, 1], before[0][:, 1])
    if muxer not in ("mpegts", "mpeg", "avi"):  # whose packets are delimited by other means than MP4's
        assert after[1] == before[1]
    begins, ends, codec = onset(output)
    assert begins == pytest.approx(1.0, abs=3e-3)
    assert ends == pytest.approx(2.0, abs=0.03)
    assert codec == CONTAINERS[suffix].audio_codec.removeprefix("lib")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "muxer"), [("a.mkv", "matroska"), ("a.mts", "mpegts")])
def test_a_video_that_begins_late_begins_with_the_audio(tmp_path, name, muxer):
    source = write_encoded_video(tmp_path / name, muxer, "libx264", first=3)
    assert probe(source).start_time == pytest.approx(3)
    sound = tone(2)
    sound[:RATE] = 0
    mux_audio(source, sound, RATE, tmp_path / "b.mp4")
    assert probe(tmp_path / "b.mp4").start_time == 0
    assert onset(tmp_path / "b.mp4")[0] == pytest.approx(1.0, abs=3e-3)
    np.testing.assert_allclose(read_frames(source)[0], read_frames(tmp_path / "b.mp4")[0], atol=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("degrees", [90, 270])
def test_a_rotated_video_stays_rotated(tmp_path, suffix, degrees):
    source = rotated_video(write_tone_video(tmp_path / "a.mp4", 1), degrees)
    mux_audio(source, tone(1), RATE, tmp_path / f"b{suffix}")
    rotations = []
    for path in (source, tmp_path / f"b{suffix}"):
        with av.open(str(path)) as container:
            rotations.append(next(container.decode(video=0)).rotation)
    assert rotations[0] == rotations[1] and rotations[0] % 180 != 0


def test_tags_are_copied_and_added(tmp_path):
    source = write_tone_video(tmp_path / "a.mp4", 1)
    mux_audio(source, tone(1), RATE, tmp_path / "b.mkv", {"title": "Rain", "comment": "seed 3"})
    for suffix in (".mp4", ".mkv"):
        mux_audio(tmp_path / "b.mkv", tone(1), RATE, tmp_path / f"c{suffix}", {"comment": "seed 4"})
        with av.open(str(tmp_path / f"c{suffix}")) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
            assert len(tags) == len(container.metadata)
            assert (tags["title"], tags["comment"]) == ("Rain", "seed 4")


def test_unsupported_streams_are_refused_beforehand(tmp_path):
    source = write_encoded_video(tmp_path / "a.webm", "webm", "libvpx", seconds=1)
    assert [suffix for suffix in CONTAINERS if can_hold_video(source, suffix)] == [".mkv", ".webm", ".wmv"]
    assert not can_hold_video(source, ".avi")
    with pytest.raises(DataError, match=r"a\.webm: its picture cannot be copied to b\.mp4"):
        mux_audio(source, tone(1), RATE, tmp_path / "b.mp4")
    with pytest.raises(DataError, match=r"b\.avi: a video file ends in \.mp4"):
        mux_audio(source, tone(1), RATE, tmp_path / "b.avi")
    assert [path.name for path in tmp_path.iterdir()] == ["a.webm"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    source = write_tone_video(tmp_path / "a.mp4", 1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MMAudioError, match=r"b\.mp4: cannot be written \((Not a directory|File exists)\)"):
        mux_audio(source, tone(1), RATE, tmp_path / "file" / "b.mp4")
