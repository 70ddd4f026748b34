"""Video streams over time: gaps, black and frozen intervals, shot cuts."""

from __future__ import annotations

import av
import pytest
import torch
from video_corpus import FPS, Sound, black, still, two_shots, write

from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.data.shots import check_scenes_extra, make_cut_detector
from mmaudio.data.video_stats import measure_video, overlap_share
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.video import probe, read_frames


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


@pytest.mark.slow
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


def frame_ahead(path, number, seconds):
    """A transport stream of 10 s at 25 fps, one frame of which is stamped so many seconds later."""
    source = write(path.with_suffix(".mkv"), "mpeg2video", seconds=10, fps=25)
    with av.open(str(source)) as read, av.open(str(path), "w", format="mpegts") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for index, packet in enumerate(packet for packet in read.demux(video=0) if packet.pts is not None):
            packet.pts += round(seconds / packet.time_base) if index == number else 0
            packet.stream = stream
            written.mux(packet)
    return path


@pytest.mark.slow
def test_one_frame_ahead_of_its_turn_is_no_restart(tmp_path):
    info = probe(frame_ahead(tmp_path / "a.ts", 100, 3.0))
    timeline = measure_video(info, 0.5)
    assert timeline.restart is None
    assert timeline.continuous == [(0.0, pytest.approx(10.0, abs=0.01))]
    (window,) = read_frame_windows(info, [3.0], [FrameGrid(25, 100, lambda frame: frame)])
    assert window.presentation_times[0] == pytest.approx([at / 25 for at in range(75, 175)], abs=1e-3)


def test_time_stamps_that_stay_back_are_a_restart(tmp_path):
    once = write(tmp_path / "once.ts", "mpeg2video", seconds=5, fps=25, muxer="mpegts")
    twice = tmp_path / "twice.ts"
    twice.write_bytes(2 * once.read_bytes())
    assert measure_video(probe(twice), 0.5).restart == pytest.approx(4.96, abs=0.01)


def test_a_scan_does_not_deblock_frames_that_no_other_refers_to_and_finds_the_same(tmp_path, monkeypatch):
    path, noise = tmp_path / "a.mp4", torch.Generator().manual_seed(0)
    texture = (200 * torch.rand(12, 16, 3, generator=noise)).repeat_interleave(8, 0).repeat_interleave(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, width=128, height=96, pix_fmt="yuv420p")
        stream.options = {"crf": "38", "bf": "2", "g": "100", "x264-params": "b-adapt=0:b-pyramid=none"}
        for index in range(6 * FPS):
            moves = index < 2 * FPS or index >= 4 * FPS
            picture = torch.zeros(96, 128, 3)
            if index >= FPS:
                picture = (
                    texture.roll(3 * index, 1) + 20 * torch.rand(96, 128, 3, generator=noise) if moves else texture
                )
            frame = av.VideoFrame.from_ndarray(picture.to(torch.uint8).numpy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = probe(path)
    fast, full = ([frame.to_ndarray() for frame in read_frames(info, for_scan=scan)] for scan in (True, False))
    assert len(fast) == len(full) and any((one != other).any() for one, other in zip(fast, full, strict=True))
    timeline = measure_video(info, max_gap=1.0)
    monkeypatch.setattr("mmaudio.data.video_stats.read_frames", lambda info, order, for_scan: read_frames(info, order))
    assert timeline == measure_video(info, max_gap=1.0) and timeline.black and timeline.frozen
