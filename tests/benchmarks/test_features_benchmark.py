"""The benchmark of reading videos: its contestants make the same of a video, and its command says what it measured."""

import re

import pytest
import torch
from video_files import write_tone_video

from benchmarks.baseline_features import read_plain_clip
from benchmarks.features import MODEL, frame_grids, main, measure_peak_memory, read_clips
from mmaudio.errors import ConfigError
from mmaudio.features import clip, synchformer
from mmaudio.features.video_features import read_clip_inputs
from mmaudio.media.video import probe
from mmaudio.model.spec import CLIP_SECONDS


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_tone_video(tmp_path_factory.mktemp("videos") / "a.mp4", 9.0)


@pytest.mark.slow
def test_one_pass_and_one_clip_at_a_time_read_the_same(video):
    info = probe(video)
    window, audio = next(read_clip_inputs(info, [0.0], CLIP_SECONDS, MODEL.codec, frame_grids()))
    stills, frames = (torch.stack(rows) for rows in window.frames)
    plain_stills, plain_frames, plain_audio = read_plain_clip(info, 0.0, MODEL)
    torch.testing.assert_close(clip.normalize_frames(stills), plain_stills, atol=1e-5, rtol=0)
    torch.testing.assert_close(synchformer.normalize_frames(frames), plain_frames, atol=1e-5, rtol=0)
    assert torch.corrcoef(torch.stack([audio, plain_audio[: len(audio)]]))[0, 1] > 0.999
    assert read_clips(info, [0.0, 1.0]) == 2


@pytest.mark.slow
def test_the_command_prints_the_time_of_each_stage(video, capsys):
    assert main([str(video)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("64 x 64, 25 fps, h264")
    shares = [int(share) for share in re.findall(r"processor time, +(\d+) %", printed)]
    assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=3)
    assert re.search(r"8 s: [\d.]+ s \(\d+ frames/s, [\d.]+ clips/s\); one clip at a time: [\d.]+ s", printed)


@pytest.mark.slow
def test_the_command_compares_precisions(video, capsys):
    assert main([str(video), "--precision", "tiny_16k"]) == 0
    printed = capsys.readouterr().out
    errors = [float(error) for error in re.findall(r"mean ([\d.]+), largest", printed)]
    assert len(errors) == 2 and all(0 < error < 0.05 for error in errors)
    shares = re.findall(r"\(([\d.]+) and ([\d.]+) of the matrix products' speed\)", printed)
    assert len(shares) == 2 and all(float(share) > 0 for pair in shares for share in pair)


@pytest.mark.slow
def test_the_encoders_alone_are_timed_without_a_video(capsys):
    assert main(["--encoders", "tiny_16k", "--clips", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny_16k, 1 clips of 8 s")
    rows = re.findall(r"(CLIP|Synchformer) +([\d.]+) s a clip, ([\d.]+) of the matrix products' speed", printed)
    assert len(rows) == 2 and all(float(seconds) > 0 and float(share) > 0 for _, seconds, share in rows)


@pytest.mark.parametrize("flags", [[], ["--clips", "0"], ["--clips", "9999999999"]])
def test_unusable_flags_are_refused(flags):
    with pytest.raises(ConfigError, match=r"which video|at least 1|at most"):
        main(flags)


@pytest.mark.slow
def test_a_long_video_takes_no_more_memory_than_a_short_one(tmp_path):
    """All frames of the long one would be 2.4 GB, and 1.8 GB as Synchformer takes them."""
    short, long = (write_tone_video(tmp_path / f"{seconds}.mp4", seconds, side=256) for seconds in (60, 480))
    sizes = [measure_peak_memory(video, tmp_path) for video in (short, long)]
    assert sizes[1] - sizes[0] < 300
