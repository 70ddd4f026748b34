"""Files with several video streams: which one is used, and the note."""

from __future__ import annotations

from fractions import Fraction

import av
import pytest
from av.stream import Disposition
from timed_videos import SIZE, numbered
from video_corpus import Sound

from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.media.video import probe

SECONDS = 3


def several(path, lengths, default=None):
    """A video whose streams have so many pictures at 10 a second; number `default` is flagged."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in lengths]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            if default is not None:
                stream.disposition = Disposition.default if number == default else Disposition(0)
        audio, sound = container.add_stream("aac", rate=16_000, layout="mono"), Sound(seconds=SECONDS)
        packets = []
        for stream, length in zip(streams, lengths, strict=True):
            for index in range(length):
                frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        for packet in [*packets, *sound.packets(container, audio)]:
            container.mux(packet)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize(
    ("lengths", "default", "used"),
    [([1, 30], 1, 1), ([1, 30], None, 1), ([30, 30], 1, 1), ([30, 30], 0, 0), ([15, 30], None, 1), ([1, 30], 0, 1)],
)
def test_of_several_pictures_the_default_one_is_used_or_the_longest_that_moves(
    tmp_path, suffix, lengths, default, used
):
    if suffix == ".mp4" and default is None:
        used = 0 if lengths[0] > 1 else used  # where none is named, MP4's first one is flagged
    path = several(tmp_path / f"a{suffix}", lengths, default)
    info = probe(path)
    assert (info.video_track, info.video_track_count) == (used, 2)
    scan = scan_video(path, ScanSettings(seconds=1.0, stride=1.0))
    assert len(scan.windows) == lengths[used] // 10
    assert scan.note == f"2 pictures: number {used} is used"
