"""Valid files with flipped bits and truncated: each gets windows or a reason in time, and no exception of our code."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from video_corpus import Sound, write

from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.utils.subprocess_worker import SubprocessWorker, WorkerError

LIMIT = 60.0
"""Seconds for one file."""
CASES = 100
"""Per kind of file: with six kinds, 600."""
KINDS = {
    ".mp4": ("libx264", "aac", 16_000),
    ".mkv": ("libx264", "flac", 16_000),
    ".webm": ("libvpx-vp9", "libopus", 48_000),
    ".avi": ("mpeg4", "libmp3lame", 44_100),
    ".ts": ("libx264", "aac", 16_000),
    ".mov": ("mjpeg", "pcm_s16le", 8_000),
}
DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=40),
    st.floats(0.02, 1.0),
    st.booleans(),
)
"""Places to flip bits at, the share of the file that is left, and whether only its head is hit."""


@pytest.fixture(scope="module")
def worker():
    """The process that scans the files, as in splitting."""
    with SubprocessWorker(scan_video) as process:
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("suffix", KINDS)
def test_damaged_files_are_used_or_left_out_in_time(suffix, worker, tmp_path):
    video, codec, rate = KINDS[suffix]
    pixels = "yuvj420p" if video == "mjpeg" else "yuv420p"
    whole = write(tmp_path / f"whole{suffix}", video, [Sound(codec, rate, seconds=2)], seconds=2, pixels=pixels)
    content = whole.read_bytes()
    target = tmp_path / f"damaged{suffix}"

    @settings(
        max_examples=CASES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGE)
    def case(damage):
        flips, share, head_only = damage
        changed = bytearray(content[: max(1, round(len(content) * share))])
        for place, bits in flips:
            changed[int(place * (min(2000, len(changed)) if head_only else len(changed)) * 0.999)] ^= bits
        target.write_bytes(changed)
        try:
            scan = worker((target, ScanSettings(1.0, 0.5)), LIMIT)
        except WorkerError as error:
            assert "failed unexpectedly" not in str(error)  # a decoder may crash; our code may not
        else:
            assert scan.reason or scan.windows

    case()
