"""Frames as a player shows them: rotated, scaled to square pixels, deinterlaced, tone-mapped."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorTrc
from video_corpus import write
from video_files import rotated_video

from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.frames import HLG, PQ, display_size, to_rgb, tone_map
from mmaudio.media.streams import video_stream
from mmaudio.media.video import decode_frames, open_container, probe


def read_frames(path, count=3):
    """The first `count` frames as the encoders get them."""
    (window,) = read_frame_windows(probe(path), [0.0], [FrameGrid(10, count, lambda frame: frame)])
    return window.frames[0]


def bright_corner(index, width, height):
    """Dark but for the upper left quarter."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[: height // 2, : width // 2] = 220
    return image


@pytest.mark.parametrize("degrees", [90, 270])
def test_a_phones_video_is_rotated_upright(tmp_path, degrees):
    path = rotated_video(write(tmp_path / "a.mp4", seconds=1, draw=bright_corner), degrees)
    image = read_frames(path)[0].float().mean(0)
    assert image.shape == (64, 48)
    assert probe(path).rotation in (90, 270)
    corners = {"upper right": image[:20, -15:], "lower left": image[-20:, :15]}
    bright = "upper right" if degrees == 90 else "lower left"  # the header's matrix turns clockwise
    assert float(corners.pop(bright).mean()) > 180
    assert float(next(iter(corners.values())).mean()) < 60


def test_pixels_that_are_not_square_are_scaled(tmp_path):
    path = write(tmp_path / "a.mp4", seconds=1, pixel=Fraction(16, 11))
    assert probe(path).pixel_aspect == Fraction(16, 11)
    assert read_frames(path)[0].shape == (3, 48, 93)
    assert display_size(720, 576, Fraction(64, 45)) == (1024, 576)
    assert display_size(720, 480, Fraction(8, 9)) == (720, 540)
    assert display_size(720, 480, Fraction(1, 100)) == (720, 480)


def test_odd_sizes_and_ten_bit_pixels_are_decoded(tmp_path):
    path = write(tmp_path / "a.mkv", "ffv1", size=(63, 47), pixels="yuv444p", seconds=1, draw=bright_corner)
    assert read_frames(path)[0].shape == (3, 47, 63)
    ten = read_frames(write(tmp_path / "b.mkv", "ffv1", pixels="yuv420p10le", seconds=1, draw=bright_corner))[0]
    eight = read_frames(write(tmp_path / "c.mkv", "ffv1", pixels="yuv420p", seconds=1, draw=bright_corner))[0]
    assert float((ten.float() - eight.float()).abs().max()) <= 2


def combed(index, width, height):
    """A bar whose odd lines are one field later, as in interlaced video."""
    image = np.full((height, width, 3), 30, np.uint8)
    image[0::2, index * 8 % width :][:, :8] = 220
    image[1::2, (index * 8 + 4) % width :][:, :8] = 220
    return image


def test_interlaced_frames_are_deinterlaced_at_the_same_times(tmp_path):
    fields = {"flags": "+ildct+ilme", "crf": "5", "x264-params": "tff=1"}
    path = write(tmp_path / "a.mp4", seconds=1, draw=combed, options=fields)
    info = probe(path)
    assert info.interlaced
    with open_container(path) as container:
        stream = video_stream(container, path)
        raw = [(frame.time, to_rgb(frame)) for frame in decode_frames(container, stream, deinterlace=False)]
    with open_container(path) as container:
        deinterlaced = [
            (frame.time, to_rgb(frame)) for frame in decode_frames(container, video_stream(container, path))
        ]
    assert [time for time, _ in deinterlaced] == pytest.approx([time for time, _ in raw])
    assert len(deinterlaced) == 10

    def combing(rgb):
        lines = rgb.float().mean(0)
        return float((lines[1:] - lines[:-1]).abs().mean())

    assert combing(deinterlaced[4][1]) < 0.4 * combing(raw[4][1])
    assert len(read_frames(path, 10)) == 10


def test_a_progressive_frame_is_unchanged(tmp_path):
    path = write(tmp_path / "a.mp4", seconds=1)
    with open_container(path) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, expected in zip(read_frames(path, 10), plain, strict=True):
        assert frame.permute(1, 2, 0).numpy().tobytes() == expected.tobytes()


def test_hdr_levels_become_standard_levels(tmp_path):
    """A grey card and a white page, as HDR states their light, come out as grey and nearly white."""
    for transfer, grey, white in ((PQ, 0.38, 0.58), (HLG, 0.38, 0.75)):  # signal levels of BT.2408, 26 and 203 cd/m2
        card = np.full((2, 2, 3), round(grey * 65_535), np.uint16)
        page = np.full((2, 2, 3), round(white * 65_535), np.uint16)
        assert tone_map(card, transfer).mean() == pytest.approx(100, abs=12)
        assert 225 <= tone_map(page, transfer).mean() <= 250
        assert tone_map(np.full((2, 2, 3), 65_535, np.uint16), transfer).min() >= 250
        assert tone_map(np.zeros((2, 2, 3), np.uint16), transfer).max() == 0


@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
def test_an_hdr_file_is_tone_mapped(tmp_path, transfer):
    def grey(index, width, height):
        return np.full((height, width, 3), 148, np.uint8)  # 58 % of the signal: a white page in PQ

    path = write(tmp_path / "a.mp4", "libx265", seconds=1, draw=grey, pixels="yuv420p10le", hdr=transfer)
    assert probe(path).color_transfer == int(transfer)
    level = float(read_frames(path)[0].float().mean())
    assert 225 <= level <= 250 if transfer == ColorTrc.SMPTE2084 else 155 <= level <= 175  # 76 cd/m2


@pytest.mark.slow
def test_a_large_hdr_frame_is_scaled_down(tmp_path):
    size = {"size": (1280, 720), "pixels": "yuv420p10le", "hdr": ColorTrc.SMPTE2084}
    path = write(tmp_path / "a.mp4", "libx265", seconds=0.3, **size)
    frame = next(av.open(str(path)).decode(video=0))
    assert to_rgb(frame).shape == (3, 540, 960)
    assert to_rgb(frame).dtype == torch.uint8
