"""Video streams over time: gaps, black and frozen intervals, shot cuts."""

from __future__ import annotations

import pytest
from video_corpus import FPS, Sound, black, still, two_shots, write

from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.data.shots import check_scenes_extra, make_cut_detector
from mmaudio.data.video_stats import measure_video, overlap_share
from mmaudio.media.video import probe


def stamped(path, *intervals):
    """A video with frames in `intervals` (start, end in seconds) only."""
    stamps = [a + index / FPS for a, b in intervals for index in range(round((b - a) * FPS))]
    return write(path, stamps=stamps)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_gap_ends_a_continuous_interval(tmp_path, suffix):
    info = probe(stamped(tmp_path / f"a{suffix}", (0, 3), (5, 7), (7.5, 9)))
    timeline = measure_video(info, max_gap=1.0)
    assert timeline.continuous[0] == pytest.approx((0, 2.9)) and timeline.continuous[1] == pytest.approx(
        (5, 9), abs=0.1
    )
    assert len(measure_video(info, max_gap=0.4).continuous) == 3
    assert len(measure_video(info, max_gap=3).continuous) == 1


def test_black_and_frozen_intervals(tmp_path):
    def changing(index, width, height):
        draw = black if 2 * FPS <= index < 4 * FPS else still if index >= 5 * FPS else two_shots
        return draw(index, width, height)

    timeline = measure_video(probe(write(tmp_path / "a.mp4", draw=changing, seconds=8, options={"crf": "10"})), 1.0)
    assert overlap_share(timeline.black, 0, 8) == pytest.approx(0.25, abs=0.05)
    assert overlap_share(timeline.black, 2.3, 3.7) == pytest.approx(1)
    assert overlap_share(timeline.frozen, 5.6, 8) == pytest.approx(1, abs=0.1)
    assert overlap_share(timeline.frozen, 0, 1.9) == 0


def test_cuts_are_found_and_no_window_spans_one(tmp_path):
    pytest.importorskip("scenedetect")
    check_scenes_extra()
    path = write(tmp_path / "a.mp4", draw=two_shots, seconds=6)
    info = probe(path)
    assert measure_video(info, 1.0, make_cut_detector(info.fps)).cuts == pytest.approx([2.0])
    path = write(tmp_path / "b.mp4", draw=two_shots, seconds=6, sounds=[Sound(seconds=6)])
    starts = [
        window.start for window in scan_video(path, ScanSettings(1.5, 0.5, scenes=True, scene_tolerance=0.1)).windows
    ]
    assert starts == pytest.approx([0.0, 0.5, *(2.0 + 0.5 * n for n in range(6))])
    across = [window.start for window in scan_video(path, ScanSettings(1.5, 0.5)).windows]
    assert across == pytest.approx([0.5 * n for n in range(10)])
