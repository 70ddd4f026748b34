"""Video files: the frame of each instant, windows in one pass, and the errors for damaged files."""

from __future__ import annotations

import os
from pathlib import Path

import av
import pytest
import torch
from helpers import golden
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision
from video_files import RATE, grey_level, tone, truncate_mp4, write_tone_video, write_variable_rate_video

from mmaudio.data.fingerprint import fingerprint
from mmaudio.errors import DataError
from mmaudio.features.mel import build_mel
from mmaudio.features.synchformer import build_synchformer
from mmaudio.media.audio import cut_audio_window, read_audio, resample_audio
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.mux import mux_audio
from mmaudio.media.video import check_not_truncated, find_video_end, probe
from mmaudio.model.spec import CODECS, compute_lengths

MEDIA = ("0B4dYTMsgHA_000130", "F8Zt3mYlOqU_000094")


def means(frames):
    """The frames' mean level: (1, 3, H, W) -> (1,)."""
    return frames.float().mean((1, 2, 3))


GRIDS = (FrameGrid(8, 64, means), FrameGrid(25, 200, means))


def first_at(times, instant):
    """The time of the frame for `instant`: the first one at it or later, else the last."""
    return next((time for time in times if time >= instant - 1e-6), times[-1])


@pytest.mark.slow
@pytest.mark.parametrize("fps", [12, 24, 25, 30])
def test_an_instant_gets_the_first_frame_at_it_or_later(tmp_path, fps):
    info = probe(write_tone_video(tmp_path / "a.mp4", 8, fps))
    (window,) = read_frame_windows(info, [0.0], GRIDS)
    times = [index / fps for index in range(8 * fps)]
    for grid, frame_times, frames in zip(GRIDS, window.presentation_times, window.frames, strict=True):
        expected = [first_at(times, index / grid.fps) for index in range(grid.count)]
        assert frame_times == pytest.approx(expected, abs=1e-4)
        assert [float(value) for value in frames] == pytest.approx(
            [grey_level(round(t * fps)) for t in expected], abs=4
        )


def test_variable_frame_rate_goes_by_time_stamps(tmp_path):
    stamps = [0.0, 0.1, 0.5, 0.52, 0.9, 1.3]
    info = probe(write_variable_rate_video(tmp_path / "a.mp4", stamps))
    (window,) = read_frame_windows(info, [0.0], [FrameGrid(10, 13, means)])
    assert window.presentation_times[0] == pytest.approx(
        [first_at(stamps, index / 10) for index in range(13)], abs=1e-6
    )


@pytest.mark.slow
def test_windows_in_one_pass_equal_windows_on_their_own(tmp_path):
    info = probe(write_tone_video(tmp_path / "a.mp4", 17, 24))
    starts = [0.0, 4.0, 8.0]
    together = list(read_frame_windows(info, starts, GRIDS))
    for start, window in zip(starts, together, strict=True):
        (alone,) = read_frame_windows(info, [start], GRIDS)
        assert window.start == start
        assert window.presentation_times == alone.presentation_times
        assert [torch.stack(f).tolist() for f in window.frames] == [torch.stack(f).tolist() for f in alone.frames]


@pytest.mark.slow
def test_a_frame_is_transformed_once_per_grid(tmp_path):
    info = probe(write_tone_video(tmp_path / "a.mp4", 16, 25))
    calls = []
    list(read_frame_windows(info, [0.0, 4.0, 8.0], [FrameGrid(8, 64, lambda f: calls.append(f.shape) or means(f))]))
    assert calls == [(1, 3, 64, 64)] * 128


def test_the_last_frame_stands_for_less_than_one_frame_after_it(tmp_path):
    info = probe(write_tone_video(tmp_path / "a.mp4", 1, 10))
    assert find_video_end(info) == pytest.approx(1.0)
    (window,) = read_frame_windows(info, [0.0], [FrameGrid(100, 100, means)])
    assert window.presentation_times[0][-9:] == pytest.approx([0.9] * 9)
    with pytest.raises(DataError, match=r"ends at 1\.00 s"):
        list(read_frame_windows(info, [0.0], [FrameGrid(100, 101, means)]))


def test_probe_reads_the_properties_of_a_file(tmp_path):
    info = probe(write_tone_video(tmp_path / "a.mp4", 2, 24))
    assert (info.width, info.height, info.fps, info.codec) == (64, 64, 24.0, "h264")
    assert (info.audio_sample_rate, info.audio_channels, info.audio_codec) == (16_000, 1, "aac")
    assert info.duration == pytest.approx(2.0)
    assert probe(write_tone_video(tmp_path / "b.mp4", 1, sound=False)).audio_sample_rate is None


def test_a_damaged_file_is_refused_with_its_reason(tmp_path):
    for name, content, reason in (
        ("empty.mp4", b"", "an empty file"),
        ("junk.mp4", bytes(range(256)) * 40, "no video"),
        ("half.mp4", write_tone_video(tmp_path / "whole.mp4", 2).read_bytes()[:3000], "cut off"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"^{name}: {reason}"):
            probe(tmp_path / name)
    with pytest.raises(DataError, match=r"^none\.mp4: not there"):
        probe(tmp_path / "none.mp4")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    source = write_tone_video(tmp_path / "a.mp4", 10)
    mux_audio(source, tone(12), RATE, tmp_path / f"whole{suffix}")  # two seconds of audio after the last frame
    whole = probe(tmp_path / f"whole{suffix}")
    check_not_truncated(whole, find_video_end(whole))
    cut = probe(truncate_mp4(tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"))
    with pytest.raises(DataError, match=rf"cut{suffix}: cut off: 1\d\.\d+ s are stated, it ends after [4-7]"):
        check_not_truncated(cut, find_video_end(cut))


def test_a_long_last_frame_is_no_truncation(tmp_path):
    """Screen recordings have a frame only where the image changes; the last one lasts until the end."""
    write_tone_video(tmp_path / "a.mp4", 4, sound=False)
    with av.open(str(tmp_path / "a.mp4")) as old, av.open(str(tmp_path / "b.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux() if packet.size]
        packets[-1].duration += round(3 / packets[0].time_base)
        for packet in packets:
            packet.stream = stream
            new.mux(packet)
    info = probe(tmp_path / "b.mp4")
    assert info.duration == pytest.approx(7, abs=0.1)
    assert find_video_end(info) == pytest.approx(4, abs=0.1), "the last frame is one frame long"
    check_not_truncated(info, find_video_end(info))


@pytest.mark.slow
def test_a_truncated_file_ends_with_its_packets(tmp_path):
    info = probe(truncate_mp4(write_tone_video(tmp_path / "a.mp4", 10), tmp_path / "b.mp4"))
    assert info.duration == pytest.approx(10)
    assert info.duration_scope == "video"
    assert 3 < find_video_end(info) < 7


@pytest.mark.parametrize("name", MEDIA)
@pytest.mark.skipif(not os.environ.get("MMAUDIO_MEDIA"), reason="MMAUDIO_MEDIA names no folder with the two real clips")
def test_real_clips_give_the_golden_frames_and_audio(name):
    def squashed(frames):
        size, mode = [384, 384], InterpolationMode.BICUBIC
        return vision.resize(frames, size, interpolation=mode, antialias=True).float() / 255

    expected = golden(f"media_{name}")
    info = probe(Path(os.environ["MMAUDIO_MEDIA"]) / f"{name}.mp4")
    grids = [FrameGrid(8, 64, squashed), FrameGrid(25, 200, build_synchformer().preprocess)]
    (window,) = read_frame_windows(info, [0.0], grids)
    for encoder, times, frames, step in zip(
        ("clip", "sync"), window.presentation_times, window.frames, (16, 16), strict=True
    ):
        assert times == expected[f"{encoder}.source_time"].tolist()
        pixels = torch.stack(frames)
        torch.testing.assert_close(pixels.mean((2, 3)), expected[f"{encoder}.mean_rgb"], atol=1e-5, rtol=0)
        torch.testing.assert_close(pixels[0, :, ::step, ::step], expected[f"{encoder}.frame0"], atol=1e-5, rtol=0)
    waveform, rate = read_audio(info.path, info)
    waveform = waveform / waveform.abs().max() * 0.95  # in this order: see `pad_and_normalize`
    for mode in ("16k", "44k"):
        codec = CODECS[mode]
        resampled = resample_audio(waveform, rate, codec.sample_rate)
        audio = cut_audio_window(resampled, codec.sample_rate, 0.0, compute_lengths(codec).audio_samples, peak=None)
        torch.testing.assert_close(audio[:2048], expected[f"{mode}.waveform_head"], atol=1e-7, rtol=0)
        mel = build_mel(mode)(audio[None])[0, :, ::4]
        torch.testing.assert_close(mel, expected[f"{mode}.mel"], atol=1e-3, rtol=0)


def test_a_named_pipe_and_a_device_are_named_as_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"a\.mp4: a named pipe"):
        probe(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to("/dev/null")
    with pytest.raises(DataError, match=r"b\.mp4: a device"):
        probe(tmp_path / "b.mp4")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file of Linux")
def test_a_file_of_the_system_that_states_no_bytes_is_not_read(tmp_path):
    for number, name in enumerate(("status", "mem")):  # reading /proc/kmsg waits for ever
        (link := tmp_path / f"{number}.mp4").symlink_to(f"/proc/self/{name}")
        with pytest.raises(DataError, match=rf"{number}\.mp4: an empty file"):
            probe(link)
        assert fingerprint(link), "not even its beginning was read"
