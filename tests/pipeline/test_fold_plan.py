"""Folds in the plan: how many, what is said of them, which commands get them; mistakes are one line before any work."""

import json
from dataclasses import asdict, replace

import pytest
from video_files import write_tone_video

from mmaudio.data.folds import FoldPlan, fold_folder, plan_path
from mmaudio.errors import ConfigError
from mmaudio.pipeline import preflight
from mmaudio.pipeline.flags import build_job, build_parser
from mmaudio.pipeline.fold_plan import count_job_folds
from mmaudio.pipeline.job import stage_commands, training_overrides
from mmaudio.pipeline.size_preset import choose_preset
from mmaudio.utils.files import atomic_write


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        write_tone_video(folder / f"{number}.mp4", 9)
    return folder


def build(folder, output, *flags, overrides=()):
    arguments = [str(folder), "--model", "tiny_16k", "--output", str(output), *flags]
    return build_job(build_parser().parse_args(arguments), ["exp_id=x", *overrides])


def write_plan(experiment, folds):
    with atomic_write(plan_path(experiment)) as temporary:
        plan = FoldPlan("clips.tsv", [[f"{number}.mp4"] for number in range(folds)])
        temporary.write_text(json.dumps(asdict(plan)))


def test_the_commands_get_the_folds_where_there_are_any(tmp_path):
    job = build(tmp_path, tmp_path, "--folds", "on")
    for number, has_folds in ((0, False), (5, True)):
        commands = stage_commands(replace(job, num_folds=number))
        assert ("--folds" in commands["split"]) == ("folds=on" in commands["train"]) == has_folds
        adapter = commands["evaluate"][commands["evaluate"].index("--lora_checkpoint") + 1]
        assert adapter == str(job.experiment if has_folds else job.experiment / "lora_checkpoints" / "best_lora.pt")


def test_auto_takes_folds_on_a_gpu_and_keeps_what_has_begun(tmp_path):
    job = build(tmp_path, tmp_path)
    assert [count_job_folds(job, 6, on_gpu) for on_gpu in (True, False)] == [5, 0]
    assert count_job_folds(build(tmp_path, tmp_path, overrides=["validation.enabled=false"]), 6, True) == 0
    assert count_job_folds(build(tmp_path, tmp_path, "--init-from", "a.pt"), 6, True) == 0, "it may know the videos"
    write_plan(job.experiment, 3)
    assert count_job_folds(job, 6, on_gpu=False) == 3
    assert count_job_folds(build(tmp_path, tmp_path, "--from", "train"), 6, True) == 5
    plan_path(job.experiment).unlink()
    (job.experiment / "lora_checkpoints").mkdir()
    assert count_job_folds(job, 6, on_gpu=True) == 0, "trained without folds before"


def test_a_training_whose_folds_have_begun_keeps_its_preset(tmp_path):
    job = build(tmp_path, tmp_path)
    fold = fold_folder(job.experiment, 1)
    (fold / "lora_checkpoints").mkdir(parents=True)
    for path, text in (
        (fold / "lora_checkpoints" / "state.pt", ""),
        (fold / "config.yaml", "lora: {rank: 32, alpha: 64.0}\nmax_steps: 1500\nlearning_rate: 2.0e-4\n"),
        (job.experiment / "config.yaml", "lora: {rank: 32, alpha: 64.0}\nmax_steps: 77\nlearning_rate: 2.0e-4\n"),
    ):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
    chosen, reason = choose_preset(job, 12, on_gpu=True)
    assert chosen.preset == "very_small" and reason == "preset=very_small, as this training began"


@pytest.mark.slow
def test_the_plan_names_the_folds_and_their_times(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "matmul_speed", lambda device, dtype: 1e11)
    plans, printed = {}, {}
    for folds in ("auto", "on", "3", "off"):
        plans[folds] = preflight.confirm_plan(build(videos, tmp_path / "out", "--folds", folds), True)
        printed[folds] = capsys.readouterr().out
    assert [plan.job.num_folds for plan in plans.values()] == [0, 4, 3, 0]
    assert "folds:    4: each of 4 videos is held out once, and the adapter gets all" in printed["on"]
    assert "of training, and about" in printed["3"] and "verdict:" not in printed["3"]
    assert (
        "folds:    off here; --folds on trains 4 times more, for a verdict over all 4 videos: about" in printed["auto"]
    )
    assert "folds:" not in printed["off"] and "--folds on (of train_lora.py" in printed["off"]
    seconds = [plans[folds].stage_seconds["train"] for folds in ("off", "3", "on")]
    assert seconds == pytest.approx([seconds[0], 4 * seconds[0], 5 * seconds[0]])
    assert "folds=on" in training_overrides(plans["on"].job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "overrides", "message"),
    [
        (["--folds", "5"], [], "--folds 5: there are 4 videos that can be used"),
        (["--folds", "3"], ["validation.enabled=false"], "--folds 3 with validation.enabled=false: folds take"),
    ],
)
def test_folds_that_cannot_be_had_end_the_plan(videos, tmp_path, flags, overrides, message):
    with pytest.raises(ConfigError) as error:
        preflight.confirm_plan(build(videos, tmp_path / "out", *flags, overrides=overrides), True)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "overrides", "message"),
    [
        (["--folds", "1"], [], "--folds 1: auto, on, off, or a number of folds from 2 on"),
        (["--folds", "many"], [], "--folds many: auto"),
        ([], ["folds=3"], "folds=3 after --: only training would use it; --folds sets it for every stage"),
    ],
)
def test_a_wrong_word_is_refused_with_the_flags(tmp_path, flags, overrides, message):
    with pytest.raises(ConfigError) as error:
        build(tmp_path, tmp_path, *flags, overrides=overrides)
    assert str(error.value).startswith(message)
