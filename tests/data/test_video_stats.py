"""The picture over time: gaps, black, frozen, shots."""

from __future__ import annotations

import pytest
from corpus import FPS, Sound, black, still, two_shots, write

from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.data.shots import check_scenes, cut_detector
from mmaudio.data.video_stats import share, watch
from mmaudio.media.video import probe


def stamped(path, *parts):
    """A video that has pictures in `parts` (from, to in seconds) alone."""
    stamps = [a + index / FPS for a, b in parts for index in range(round((b - a) * FPS))]
    return write(path, stamps=stamps)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_gap_divides_the_picture(tmp_path, suffix):
    info = probe(stamped(tmp_path / f"a{suffix}", (0, 3), (5, 7), (7.5, 9)))
    line = watch(info, max_gap=1.0)
    assert line.parts[0] == pytest.approx((0, 2.9)) and line.parts[1] == pytest.approx((5, 9), abs=0.1)
    assert len(watch(info, max_gap=0.4).parts) == 3
    assert len(watch(info, max_gap=3).parts) == 1


def test_black_and_frozen_pictures_are_found(tmp_path):
    def changing(index, width, height):
        draw = black if 2 * FPS <= index < 4 * FPS else still if index >= 5 * FPS else two_shots
        return draw(index, width, height)

    line = watch(probe(write(tmp_path / "a.mp4", draw=changing, seconds=8, options={"crf": "10"})), 1.0)
    assert share(line.black, 0, 8) == pytest.approx(0.25, abs=0.05)
    assert share(line.black, 2.3, 3.7) == pytest.approx(1)
    assert share(line.frozen, 5.6, 8) == pytest.approx(1, abs=0.1)
    assert share(line.frozen, 0, 1.9) == 0


def test_shots_are_found_and_no_window_lies_across(tmp_path):
    pytest.importorskip("scenedetect")
    check_scenes()
    path = write(tmp_path / "a.mp4", draw=two_shots, seconds=6)
    info = probe(path)
    assert watch(info, 1.0, cut_detector(info.fps)).cuts == pytest.approx([2.0])
    path = write(tmp_path / "b.mp4", draw=two_shots, seconds=6, sounds=[Sound(seconds=6)])
    starts = [span.start for span in scan_video(path, ScanSettings(1.5, 0.5, scenes=True, scene_tolerance=0.1)).spans]
    assert starts == pytest.approx([0.0, 0.5, *(2.0 + 0.5 * n for n in range(6))])
    across = [span.start for span in scan_video(path, ScanSettings(1.5, 0.5)).spans]
    assert across == pytest.approx([0.5 * n for n in range(10)])
