"""The benchmark of reading videos: its contestants make the same of a video, and its command says what it measured."""

import re

import pytest
import torch
from media import make_video

from benchmarks import features as benchmark
from mmaudio.errors import ConfigError
from mmaudio.features import clip, synchformer
from mmaudio.features.video_features import read_material
from mmaudio.media.video import probe
from mmaudio.model.spec import SECONDS


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("videos") / "a.mp4", 9.0)


@pytest.mark.slow
def test_one_pass_and_one_clip_at_a_time_read_the_same(video):
    info = probe(video)
    window, sound = next(read_material(info, [0.0], SECONDS, benchmark.MODEL.codec, benchmark.grids()))
    stills, motion = (torch.stack(frames) for frames in window.frames)
    plain_stills, plain_motion, plain_sound = benchmark.plain(info, 0.0)
    torch.testing.assert_close(clip.normalise(stills), plain_stills, atol=1e-5, rtol=0)
    torch.testing.assert_close(synchformer.normalise(motion), plain_motion, atol=1e-5, rtol=0)
    assert torch.corrcoef(torch.stack([sound, plain_sound[: len(sound)]]))[0, 1] > 0.999
    assert benchmark.ours(info, [0.0, 1.0]) == 2


@pytest.mark.slow
def test_the_command_says_what_each_part_takes(video, capsys):
    assert benchmark.main([str(video)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("64 x 64, 25 fps, h264")
    shares = [int(share) for share in re.findall(r"processor time, +(\d+) %", printed)]
    assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=3)
    assert re.search(r"8 s: [\d.]+ s \(\d+ frames/s, [\d.]+ clips/s\); one clip at a time: [\d.]+ s", printed)


@pytest.mark.slow
def test_the_command_compares_precisions(video, capsys):
    assert benchmark.main([str(video), "--precision", "tiny_16k"]) == 0
    printed = capsys.readouterr().out
    errors = [float(error) for error in re.findall(r"mean ([\d.]+), largest", printed)]
    assert len(errors) == 2 and all(0 < error < 0.05 for error in errors)
    shares = re.findall(r"\(([\d.]+) and ([\d.]+) of the matrix products' speed\)", printed)
    assert len(shares) == 2 and all(0 < float(share) < 1 for pair in shares for share in pair)


@pytest.mark.slow
def test_the_encoders_alone_are_timed_without_a_video(capsys):
    assert benchmark.main(["--encoders", "tiny_16k", "--clips", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny_16k, 1 clips of 8 s")
    found = re.findall(r"(CLIP|Synchformer) +([\d.]+) s a clip, ([\d.]+) of the matrix products' speed", printed)
    assert len(found) == 2 and all(float(seconds) > 0 and float(share) < 1 for _, seconds, share in found)


@pytest.mark.parametrize("flags", [[], ["--clips", "0"], ["--clips", "9999999999"]])
def test_what_it_cannot_time_is_said(flags):
    with pytest.raises(ConfigError, match=r"which video|at least 1|at most"):
        benchmark.main(flags)


@pytest.mark.slow
def test_a_long_video_takes_no_more_memory_than_a_short_one(tmp_path):
    """All frames of the long one would be 2.4 GB, and 1.8 GB as Synchformer takes them."""
    short, long = (make_video(tmp_path / f"{seconds}.mp4", seconds, side=256) for seconds in (60, 480))
    sizes = [benchmark.peak_memory(video, tmp_path) for video in (short, long)]
    assert sizes[1] - sizes[0] < 300
