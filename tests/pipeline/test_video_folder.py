"""The plan and splitting say where too few videos are held out for a verdict, and what to do."""

import pytest
from helpers import split_command
from video_files import write_tone_video

from mmaudio.data.config import SplitConfig
from mmaudio.pipeline import preflight, run
from mmaudio.pipeline.flags import build_job, build_parser
from mmaudio.pipeline.video_folder import print_verdict_needs, split_ratios

NEEDS = "verdict:  none will be possible: 1 of 6 videos is held out, 3 are needed. Ways to one:\n"
WAYS = (
    "--folds on (of train_lora.py: folds=on): every video is held out once, and training has all of them",
    "more videos: from 9 on, 3 are held out",
    "--test_ratio 0.5: 3 are held out, and training has 2",
)


def build(tmp_path, *flags):
    return build_job(build_parser().parse_args([*map(str, flags), "--output", str(tmp_path / "out")]), [])


@pytest.mark.parametrize(
    ("count", "flags", "is_said"),
    [
        (6, [], True),
        (6, ["--test_ratio", "0.5"], False),
        (9, [], False),
        (10, ["--test_ratio", "0.1"], True),
        (0, [], False),
    ],
)
def test_the_plan_says_it_where_too_few_are_held_out(tmp_path, capsys, count, flags, is_said):
    job = build(tmp_path, tmp_path, *flags)
    ratios = split_ratios(job, preflight.read_split_config(job))
    print_verdict_needs(job, [f"{number}.mp4" for number in range(count)], ratios)
    assert ("verdict:" in capsys.readouterr().out) == is_said


def test_the_demo_holds_out_enough(tmp_path):
    assert split_ratios(build(tmp_path, "--demo"), SplitConfig()).test == 0.3
    assert split_ratios(build(tmp_path, "--demo", "--test_ratio", "0.1"), SplitConfig(test_ratio=0.1)).test == 0.1


@pytest.mark.slow
def test_six_videos_are_warned_of_before_any_work_and_by_splitting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "matmul_speed", lambda device, dtype: 1e10)
    (tmp_path / "videos").mkdir()
    for number in range(6):
        write_tone_video(tmp_path / "videos" / f"{number}.mp4", 9)
    arguments = [str(tmp_path / "videos"), "--model", "tiny_16k", "--output", str(tmp_path / "out"), "--dry-run"]
    assert run.main(arguments) == 0
    printed = capsys.readouterr().out
    assert NEEDS + "".join(f"          {way}\n" for way in WAYS) in printed and not (tmp_path / "out").exists()
    table = tmp_path / "clips.tsv"
    split_command("--input_dir", tmp_path / "videos", "--output_tsv", table)
    assert f"note: {NEEDS.strip()} {'; '.join(WAYS)}".replace("verdict:  ", "verdict: ") in capsys.readouterr().out
