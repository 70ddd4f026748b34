"""The plan's time estimates: every stage, the steps that are left, and what they took in the end."""

from dataclasses import replace

import pytest
import torch
from helpers import mini

from mmaudio.config import compose
from mmaudio.data.splits import SplitRatios
from mmaudio.evaluation import strength_sweep
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora
from mmaudio.lora.checkpoint import AdapterFile, write_adapter
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.model.spec import CLIP_SECONDS
from mmaudio.pipeline import preflight, run
from mmaudio.pipeline.flags import build_job, build_parser
from mmaudio.pipeline.job import STAGES, training_overrides
from mmaudio.utils import matmul_speed

CPU = torch.device("cpu")
MATMUL_SPEED = preflight.matmul_speed
"""Before it is replaced below."""


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    monkeypatch.setattr(preflight, "matmul_speed", lambda device, dtype: 1e10)


def build(tmp_path, *flags):
    arguments = [str(tmp_path), "--model", "tiny_16k", "--output", str(tmp_path / "out"), *flags]
    return build_job(build_parser().parse_args(arguments), ["exp_id=x", "max_steps=100"])


@pytest.mark.slow
def test_the_steps_that_are_left_of_a_training_count(tmp_path):
    job = build(tmp_path)
    assert preflight.find_step(job.experiment, job) == 0
    lora = LoRAConfig(rank=4)
    model = add_lora(mini(), lora)
    adapter = AdapterFile(lora, adapter_state(model), "tiny_16k", "0" * 64, targets=list(lora_layers(model)), step=75)
    write_adapter(job.experiment / "lora_checkpoints" / "last_lora.pt", adapter)
    assert preflight.find_step(job.experiment, job) == 75
    assert preflight.find_step(job.experiment, build(tmp_path, "--from", "train")) == 0
    config = compose(training_overrides(job))
    arguments = job, config, 10, SplitRatios(), CPU, CLIP_SECONDS, (0, 0)
    rest, whole = preflight.estimate_stages(*arguments)
    assert rest["train"] == pytest.approx(whole / 4)


@pytest.mark.parametrize(
    ("model", "seconds", "captions"), [("tiny_16k", 8, 0), ("tiny_16k", 4, 88), ("small_16k", 8, 40)]
)
def test_samples_of_the_base_count_in_the_plan(tmp_path, model, seconds, captions):
    """Those of tiny_16k ship with it for 8 s; every other is made once, before the first step of the first fold."""
    job = replace(build(tmp_path, "--model", model), num_folds=2)

    def train_seconds(weight):
        config = compose([*training_overrides(job), "preset=quick", "max_steps=100", f"preserve_base={weight}"])
        stages, _ = preflight.estimate_stages(job, config, 10, SplitRatios(), CPU, seconds, (0, 0))
        checks = preflight.estimate_checks(job, config, 1, 100, CPU)
        return stages["train"] - 3 * checks

    passes = [3 * 3 * 1600, 3 * (3 * 1600 + 4 * 200)]  # forward and backward: 3; guided: 2 a step
    making = captions * 2 * 25
    assert train_seconds(1) / train_seconds(0) == pytest.approx((passes[1] + making) / passes[0])
    path = job.features / "base_samples" / "made.pt"
    path.parent.mkdir(parents=True)
    path.touch()
    assert train_seconds(1) / train_seconds(0) == pytest.approx(passes[1] / passes[0])


def test_passes_of_the_base_cost_their_launch_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "matmul_speed", lambda device, dtype: 1e18)
    job = build(tmp_path, "--model", "small_16k")
    batches = ["max_steps=100", "batch_size=4", "gradient_accumulation_steps=1", "preserve_share=0.5"]

    def train_seconds(weight):
        config = compose([*training_overrides(job), *batches, f"preserve_base={weight}"])
        return preflight.estimate_seconds(job, config, 10, torch.device("cuda"))["train"]

    assert train_seconds(0) == pytest.approx(100 * 12 * 0.002), "12 blocks of recorded batches"
    assert train_seconds(1) == pytest.approx(100 * 12 * (0.002 + 0.01 * 4 / 3))


def test_the_speed_of_the_machine_is_measured_once(monkeypatch):
    monkeypatch.setattr(matmul_speed, "PROBE_SIZE", {"cpu": 64})
    monkeypatch.setattr(matmul_speed, "PROBE_SECONDS", 0.0)
    speeds = [MATMUL_SPEED(CPU, torch.float32) for _ in range(5)]
    assert len(set(speeds)) == 1 and speeds[0] > 0
    MATMUL_SPEED.cache_clear()  # it is that of small matrices


def test_the_plan_knows_the_sweep_of_strengths():
    assert (len(strength_sweep.DEFAULT_STRENGTHS), strength_sweep.MAX_CLIPS) == preflight.STRENGTH_SWEEP


@pytest.mark.parametrize(("forked", "shares"), [(False, [10.0, 15.0, 27.5, 28.5]), (True, [10.0, 3.0, 10.0, 3.0])])
def test_the_start_of_a_stage_counts_in_the_plan(tmp_path, monkeypatch, forked, shares):
    monkeypatch.setattr(preflight, "may_fork", lambda: forked)
    plan, slow = (preflight.confirm_plan(build(tmp_path), True, seconds).stage_seconds for seconds in (0.0, 10.0))
    assert [slow[name] - plan[name] for name in STAGES] == pytest.approx(shares)


def test_checks_and_general_clips_count_in_the_plan(tmp_path):
    job = build(tmp_path)
    assert preflight.estimate_evaluation(job, 0, CPU, 8.0) > 60, "12 clips of the base model's own domain"
    config = compose(training_overrides(job))
    few, many = (preflight.estimate_checks(job, config, 2, steps, CPU) for steps in (100, 400))
    assert 10 < few < many and preflight.estimate_checks(job, config, 2, 0, CPU) == 0


def test_decoding_counts_by_the_vocoder(tmp_path):
    """The released models' takes forty times as long."""
    tiny, small, large = (
        preflight.estimate_decoding(build(tmp_path, "--model", model), 3, CPU)
        for model in ("tiny_16k", "small_16k", "small_44k")
    )
    assert 30 < small / tiny < 60 and 2.5 < large / small < 3


def test_an_evaluation_of_more_clips_takes_longer(tmp_path):
    job = build(tmp_path, "--model", "small_16k")
    few, many = (preflight.estimate_evaluation(job, clips, CPU, 8.0) for clips in (10, 20))
    assert 1.3 * few < many < 2 * few, "the other strengths are tried on as many clips"


def test_without_strengths_to_try_an_evaluation_takes_half_as_long(tmp_path):
    job = build(tmp_path)
    none, sweep = (preflight.estimate_evaluation(job, 1, CPU, 8.0, sweep) for sweep in ((0, 0), (3, 8)))
    assert 0.4 * sweep < none < 0.65 * sweep


def test_the_videos_that_ship_with_a_model_count(tmp_path):
    assert preflight.estimate_evaluation(build(tmp_path), 0, CPU, 8.0) > 0
    assert preflight.estimate_evaluation(build(tmp_path, "--model", "small_16k"), 0, CPU, 8.0) == 0


def test_the_plan_has_every_stage_and_its_times_stand_beside_the_real_ones(tmp_path, capsys):
    plan = preflight.confirm_plan(build(tmp_path), accept_long=True)
    assert tuple(plan.stage_seconds) == STAGES and "about split 0 s, extract 0 s, train " in capsys.readouterr().out
    run.print_times({**plan.stage_seconds, "train": 61.7}, dict.fromkeys(STAGES, 84.2))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:2] + lines[4:5]] == [
        ["stage", "planned", "took"],
        ["train", "62", "s", "84", "s"],
    ]
