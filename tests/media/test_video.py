"""Reading videos: which frame stands for an instant, windows in one pass, and what is said of files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import av
import pytest
import torch
from conftest import golden
from media import RATE, cut_off, level, make_video, tone, variable_rate_video
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mmaudio.errors import DataError
from mmaudio.features.mel import build_mel
from mmaudio.features.synchformer import build_synchformer
from mmaudio.media.audio import audio_window, read_audio, resample_audio
from mmaudio.media.frame_windows import Grid, read_windows
from mmaudio.media.mux import mux_audio
from mmaudio.media.video import check_whole, picture_end, probe
from mmaudio.model.spec import CODECS, lengths

MEDIA = ("0B4dYTMsgHA_000130", "F8Zt3mYlOqU_000094")


def means(frames):
    """The frames' mean level: (1, 3, H, W) -> (1,)."""
    return frames.float().mean((1, 2, 3))


GRIDS = (Grid(8, 64, means), Grid(25, 200, means))


def first_at(times, instant):
    """The frame that stands for `instant`, by the rule's words."""
    return next((time for time in times if time >= instant - 1e-6), times[-1])


@pytest.mark.parametrize("fps", [12, 24, 25, 30])
def test_an_instant_takes_the_first_frame_at_it_or_later(tmp_path, fps):
    info = probe(make_video(tmp_path / "a.mp4", 8, fps))
    (window,) = read_windows(info, [0.0], GRIDS)
    times = [index / fps for index in range(8 * fps)]
    for grid, got, shown in zip(GRIDS, window.times, window.frames, strict=True):
        expected = [first_at(times, index / grid.rate) for index in range(grid.count)]
        assert got == pytest.approx(expected, abs=1e-4)
        assert [float(v) for v in shown] == pytest.approx([level(round(t * fps)) for t in expected], abs=4)


def test_variable_frame_rate_goes_by_time_stamps(tmp_path):
    stamps = [0.0, 0.1, 0.5, 0.52, 0.9, 1.3]
    info = probe(variable_rate_video(tmp_path / "a.mp4", stamps))
    (window,) = read_windows(info, [0.0], [Grid(10, 13, means)])
    assert window.times[0] == pytest.approx([first_at(stamps, index / 10) for index in range(13)], abs=1e-6)


def test_windows_in_one_pass_equal_windows_on_their_own(tmp_path):
    info = probe(make_video(tmp_path / "a.mp4", 17, 24))
    starts = [0.0, 4.0, 8.0]
    together = list(read_windows(info, starts, GRIDS))
    for start, window in zip(starts, together, strict=True):
        (alone,) = read_windows(info, [start], GRIDS)
        assert window.start == start
        assert window.times == alone.times
        assert [torch.stack(f).tolist() for f in window.frames] == [torch.stack(f).tolist() for f in alone.frames]


def test_a_frame_is_transformed_once_per_grid(tmp_path):
    info = probe(make_video(tmp_path / "a.mp4", 16, 25))
    calls = []
    list(read_windows(info, [0.0, 4.0, 8.0], [Grid(8, 64, lambda f: calls.append(f.shape) or means(f))]))
    assert calls == [(1, 3, 64, 64)] * 128


def test_the_last_frame_stands_for_less_than_one_frame_after_it(tmp_path):
    info = probe(make_video(tmp_path / "a.mp4", 1, 10))
    assert picture_end(info) == pytest.approx(1.0)
    (window,) = read_windows(info, [0.0], [Grid(100, 100, means)])
    assert window.times[0][-9:] == pytest.approx([0.9] * 9)
    with pytest.raises(DataError, match=r"ends at 1\.00 s"):
        list(read_windows(info, [0.0], [Grid(100, 101, means)]))


def test_probe_says_what_a_file_is(tmp_path):
    info = probe(make_video(tmp_path / "a.mp4", 2, 24))
    assert (info.width, info.height, info.fps, info.codec) == (64, 64, 24.0, "h264")
    assert (info.audio_rate, info.audio_channels, info.audio_codec) == (16_000, 1, "aac")
    assert info.duration == pytest.approx(2.0)
    assert probe(make_video(tmp_path / "b.mp4", 1, sound=False)).audio_rate is None


def test_what_is_no_video_is_named_with_its_reason(tmp_path):
    for name, content, reason in (
        ("empty.mp4", b"", "an empty file"),
        ("junk.mp4", bytes(range(256)) * 40, "no video"),
        ("half.mp4", make_video(tmp_path / "whole.mp4", 2).read_bytes()[:3000], "cut off"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"^{name}: {reason}"):
            probe(tmp_path / name)
    with pytest.raises(DataError, match=r"^none\.mp4: not there"):
        probe(tmp_path / "none.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_that_lacks_its_end_is_named(tmp_path, suffix):
    source = make_video(tmp_path / "a.mp4", 10)
    mux_audio(source, tone(12), RATE, tmp_path / f"whole{suffix}")  # two seconds of sound after the picture
    whole = probe(tmp_path / f"whole{suffix}")
    check_whole(whole, picture_end(whole))
    cut = probe(cut_off(tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"))
    with pytest.raises(DataError, match=rf"cut{suffix}: cut off: 1\d\.\d+ s are stated, it ends after [4-7]"):
        check_whole(cut, picture_end(cut))


def test_a_last_frame_that_stays_for_long_is_no_cut(tmp_path):
    """Screen recordings have a frame only where the picture changes; the last one stays until their end."""
    make_video(tmp_path / "a.mp4", 4, sound=False)
    with av.open(str(tmp_path / "a.mp4")) as old, av.open(str(tmp_path / "b.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux() if packet.size]
        packets[-1].duration += round(3 / packets[0].time_base)
        for packet in packets:
            packet.stream = stream
            new.mux(packet)
    info = probe(tmp_path / "b.mp4")
    assert info.duration == pytest.approx(7, abs=0.1)
    assert picture_end(info) == pytest.approx(4, abs=0.1), "what lasts is one picture"
    check_whole(info, picture_end(info))


def test_a_file_that_is_cut_off_ends_where_its_packets_do(tmp_path):
    info = probe(cut_off(make_video(tmp_path / "a.mp4", 10), tmp_path / "b.mp4"))
    assert info.duration == pytest.approx(10)
    assert info.stated == "picture"
    assert 3 < picture_end(info) < 7


@pytest.mark.parametrize("name", MEDIA)
@pytest.mark.skipif(not os.environ.get("MMAUDIO_MEDIA"), reason="MMAUDIO_MEDIA names no folder with the two real clips")
def test_real_clips_give_the_golden_frames_and_sound(name):
    def squashed(frames):
        size, mode = [384, 384], InterpolationMode.BICUBIC
        return vision.resize(frames, size, interpolation=mode, antialias=True).float() / 255

    expected = golden(f"media_{name}")
    info = probe(Path(os.environ["MMAUDIO_MEDIA"]) / f"{name}.mp4")
    grids = [Grid(8, 64, squashed), Grid(25, 200, build_synchformer().preprocess)]
    (window,) = read_windows(info, [0.0], grids)
    for part, times, frames, step in zip(("clip", "sync"), window.times, window.frames, (16, 16), strict=True):
        assert times == expected[f"{part}.source_time"].tolist()
        pixels = torch.stack(frames)
        torch.testing.assert_close(pixels.mean((2, 3)), expected[f"{part}.mean_rgb"], atol=1e-5, rtol=0)
        torch.testing.assert_close(pixels[0, :, ::step, ::step], expected[f"{part}.frame0"], atol=1e-5, rtol=0)
    waveform, rate = read_audio(info.path, info)
    waveform = waveform / waveform.abs().max() * 0.95  # in this order: see `fitted`
    for mode in ("16k", "44k"):
        codec = CODECS[mode]
        resampled = resample_audio(waveform, rate, codec.rate)
        sound = audio_window(resampled, codec.rate, 0.0, lengths(codec).samples, peak=None)
        torch.testing.assert_close(sound[:2048], expected[f"{mode}.waveform_head"], atol=1e-7, rtol=0)
        mel = build_mel(mode)(sound[None])[0, :, ::4]
        torch.testing.assert_close(mel, expected[f"{mode}.mel"], atol=1e-3, rtol=0)
