"""Pictures as they are meant to be seen: turned, stretched, deinterlaced, HDR."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorTrc
from corpus import write
from media import turned

from mmaudio.media.frame_windows import Grid, read_windows
from mmaudio.media.frames import HLG, PQ, shown_size, to_rgb, tone_mapped
from mmaudio.media.video import decoded, opened, picture_stream, probe


def pictures(path, count=3):
    """The first `count` pictures as the encoders get them."""
    (window,) = read_windows(probe(path), [0.0], [Grid(10, count, lambda frame: frame)])
    return window.frames[0]


def bright_corner(index, width, height):
    """Dark but for the upper left quarter."""
    picture = np.full((height, width, 3), 20, np.uint8)
    picture[: height // 2, : width // 2] = 220
    return picture


@pytest.mark.parametrize("degrees", [90, 270])
def test_a_phones_picture_is_turned_upright(tmp_path, degrees):
    path = turned(write(tmp_path / "a.mp4", seconds=1, draw=bright_corner), degrees)
    picture = pictures(path)[0].float().mean(0)
    assert picture.shape == (64, 48)
    assert probe(path).rotation in (90, 270)
    corners = {"upper right": picture[:20, -15:], "lower left": picture[-20:, :15]}
    bright = "upper right" if degrees == 90 else "lower left"  # the header's matrix turns clockwise
    assert float(corners.pop(bright).mean()) > 180
    assert float(next(iter(corners.values())).mean()) < 60


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    path = write(tmp_path / "a.mp4", seconds=1, pixel=Fraction(16, 11))
    assert probe(path).pixel == Fraction(16, 11)
    assert pictures(path)[0].shape == (3, 48, 93)
    assert shown_size(720, 576, Fraction(64, 45)) == (1024, 576)
    assert shown_size(720, 480, Fraction(8, 9)) == (720, 540)
    assert shown_size(720, 480, Fraction(1, 100)) == (720, 480)


def test_odd_sides_and_ten_bits_are_read(tmp_path):
    path = write(tmp_path / "a.mkv", "ffv1", size=(63, 47), pixels="yuv444p", seconds=1, draw=bright_corner)
    assert pictures(path)[0].shape == (3, 47, 63)
    ten = pictures(write(tmp_path / "b.mkv", "ffv1", pixels="yuv420p10le", seconds=1, draw=bright_corner))[0]
    eight = pictures(write(tmp_path / "c.mkv", "ffv1", pixels="yuv420p", seconds=1, draw=bright_corner))[0]
    assert float((ten.float() - eight.float()).abs().max()) <= 2


def combed(index, width, height):
    """A bar whose odd lines are a field later, as cameras write it."""
    picture = np.full((height, width, 3), 30, np.uint8)
    picture[0::2, index * 8 % width :][:, :8] = 220
    picture[1::2, (index * 8 + 4) % width :][:, :8] = 220
    return picture


def test_interlaced_pictures_lose_their_combs_and_keep_their_times(tmp_path):
    fields = {"flags": "+ildct+ilme", "crf": "5", "x264-params": "tff=1"}
    path = write(tmp_path / "a.mp4", seconds=1, draw=combed, options=fields)
    info = probe(path)
    assert info.interlaced
    with opened(path) as container:
        stream = picture_stream(container, path)
        raw = [(frame.time, to_rgb(frame)) for frame in decoded(container, stream, whole_lines=False)]
    with opened(path) as container:
        whole = [(frame.time, to_rgb(frame)) for frame in decoded(container, picture_stream(container, path))]
    assert [time for time, _ in whole] == pytest.approx([time for time, _ in raw])
    assert len(whole) == 10

    def combs(rgb):
        lines = rgb.float().mean(0)
        return float((lines[1:] - lines[:-1]).abs().mean())

    assert combs(whole[4][1]) < 0.4 * combs(raw[4][1])
    assert len(pictures(path, 10)) == 10


def test_a_picture_in_whole_lines_is_passed_on_untouched(tmp_path):
    path = write(tmp_path / "a.mp4", seconds=1)
    with opened(path) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for own, theirs in zip(pictures(path, 10), plain, strict=True):
        assert own.permute(1, 2, 0).numpy().tobytes() == theirs.tobytes()


def test_hdr_looks_like_the_standard_picture(tmp_path):
    """A grey card and a white page, as HDR states their light, come out as grey and nearly white."""
    for transfer, grey, white in ((PQ, 0.38, 0.58), (HLG, 0.38, 0.75)):  # signal levels of BT.2408, 26 and 203 cd/m2
        card = np.full((2, 2, 3), round(grey * 65_535), np.uint16)
        page = np.full((2, 2, 3), round(white * 65_535), np.uint16)
        assert tone_mapped(card, transfer).mean() == pytest.approx(100, abs=12)
        assert 225 <= tone_mapped(page, transfer).mean() <= 250
        assert tone_mapped(np.full((2, 2, 3), 65_535, np.uint16), transfer).min() >= 250
        assert tone_mapped(np.zeros((2, 2, 3), np.uint16), transfer).max() == 0


@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
def test_an_hdr_file_is_tone_mapped(tmp_path, transfer):
    def grey(index, width, height):
        return np.full((height, width, 3), 148, np.uint8)  # 58 % of the signal: a white page in PQ

    path = write(tmp_path / "a.mp4", "libx265", seconds=1, draw=grey, pixels="yuv420p10le", hdr=transfer)
    assert probe(path).transfer == int(transfer)
    level = float(pictures(path)[0].float().mean())
    assert 225 <= level <= 250 if transfer == ColorTrc.SMPTE2084 else 155 <= level <= 175  # 76 cd/m2


def test_a_large_hdr_picture_is_made_smaller(tmp_path):
    size = {"size": (1280, 720), "pixels": "yuv420p10le", "hdr": ColorTrc.SMPTE2084}
    path = write(tmp_path / "a.mp4", "libx265", seconds=0.3, **size)
    frame = next(av.open(str(path)).decode(video=0))
    assert to_rgb(frame).shape == (3, 540, 960)
    assert to_rgb(frame).dtype == torch.uint8
