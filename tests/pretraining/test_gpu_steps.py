"""GPU steps train as the CPU's do; run here on the CPU, where no graph is captured."""

import copy
import functools

import pytest
import torch
from helpers import ROOT, run_script
from torch import nn

from mmaudio.errors import ConfigError, TrainingError
from mmaudio.pretraining.cpu_steps import CpuSteps
from mmaudio.pretraining.gpu_steps import GpuSteps
from mmaudio.pretraining.muon import MuonAdamW
from mmaudio.pretraining.objective import CPU, Objective, step_generator
from mmaudio.pretraining.recipe import Recipe
from mmaudio.pretraining.segment_augmentation import flip_segments, gather_flipped_segments
from mmaudio.pretraining.shards import concatenate_on_gpu
from mmaudio.pretraining.stages import TRAINED_STAGES, PretrainingConfig, parse_steps

RECIPE = Recipe(
    steps=8, learning_rate=1e-2, muon_learning_rate=1e-2, warmup_steps=2, ema_decay=0.9, micro_batches=2, bf16=False
)


def problem():
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    module = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(3, 2), "unused": nn.Linear(2, 2)})
    module.register_buffer("scale", torch.ones(3))

    def loss(x):
        return (module["head"](module["blocks"](x)) - 1).square().mean()

    return module, Objective(lambda generator: (torch.randn(2, 4, 7, generator=generator),), loss)


def build(steps_class, recipe=RECIPE):
    module, objective = problem()
    optimizer = MuonAdamW(module, recipe, capturable=steps_class is GpuSteps)
    ema = {name: value.detach().clone() for name, value in module.state_dict().items()}
    generator_for = functools.partial(step_generator, 7)
    return module, optimizer, ema, steps_class(module, optimizer, ema, objective, recipe, generator_for)


def test_gpu_steps_train_as_cpu_steps_do():
    results = []
    for steps_class in (CpuSteps, GpuSteps):
        module, _, ema, steps = build(steps_class)
        losses = []
        for step in range(RECIPE.steps):
            steps.run(step)
            losses.append(steps.mean_loss(step))
        results.append((losses, dict(module.state_dict()), ema))
    (cpu_losses, cpu_weights, cpu_ema), (gpu_losses, gpu_weights, gpu_ema) = results
    assert gpu_losses == pytest.approx(cpu_losses, rel=1e-4)
    for name in cpu_weights:
        # Muon orthogonalises in bfloat16, one matrix at a time or several
        torch.testing.assert_close(gpu_weights[name], cpu_weights[name], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(gpu_ema[name], cpu_ema[name], atol=2e-4, rtol=1e-3)
    initial = problem()[0].state_dict()
    assert not torch.equal(cpu_weights["blocks.1.weight"], initial["blocks.1.weight"])
    assert torch.equal(gpu_weights["unused.weight"], initial["unused.weight"])


def test_the_mean_loss_covers_the_steps_since_the_last_one():
    _, _, _, steps = build(GpuSteps)
    losses = []
    for step in range(4):
        steps.run(step)
        losses.append(steps.mean_loss(step))
    _, _, _, steps = build(GpuSteps)
    for step in range(4):
        steps.run(step)
    assert steps.mean_loss(3) == pytest.approx(sum(losses) / 4)
    steps.run(4)
    assert steps.mean_loss(4) < losses[0]


@pytest.mark.parametrize("resumed_class", [CpuSteps, GpuSteps])
@pytest.mark.parametrize("first_class", [CpuSteps, GpuSteps])
def test_the_optimizer_state_moves_between_devices(first_class, resumed_class):
    module, optimizer, _, steps = build(first_class)
    for step in range(4):
        steps.run(step)
    optimizer_state = copy.deepcopy(optimizer.state_dict())
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    resumed_module, resumed_optimizer, _, resumed_steps = build(resumed_class)
    resumed_module.load_state_dict(weights)
    resumed_optimizer.load_state_dict(optimizer_state)
    groups = [each.param_groups[0] for each in resumed_optimizer.optimizers]
    for group, rate in zip(groups, resumed_optimizer.learning_rates, strict=True):
        assert group["lr"] is rate
    for each in (steps, resumed_steps):
        for step in range(4, 8):
            each.run(step)
    expected = module.state_dict()
    for name, value in resumed_module.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=1e-3)


def test_mean_loss_raises_for_a_loss_that_was_not_finite():
    module, _, _, steps = build(GpuSteps)
    steps.run(0)
    with torch.no_grad():
        module["head"].weight.fill_(torch.nan)
    steps.run(1)
    steps.run(2)
    with pytest.raises(TrainingError, match="step 2, or one of the 2 before it"):
        steps.mean_loss(2)


def test_on_a_cpu_clips_stay_in_their_files():
    assert concatenate_on_gpu([torch.zeros(2, 3)], CPU) is None


def test_gathered_segments_are_the_flipped_ones():
    frames = torch.randint(256, (5, 40, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    clips, first_frames = torch.tensor([0, 4, 2, 2, 1, 3, 0, 4, 1]), torch.tensor([0, 24, 2, 4, 6, 8, 10, 12, 14])
    segments = torch.stack([frames[clip, at : at + 16] for clip, at in zip(clips, first_frames, strict=True)])
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        flip_order = torch.tensor(order)
        expected = flip_segments(segments, flip_order)
        assert torch.equal(gather_flipped_segments(frames, clips, first_frames, flip_order), expected)
        zeros = torch.zeros(9, dtype=torch.int64)
        assert torch.equal(gather_flipped_segments(segments, torch.arange(9), zeros, flip_order), expected)


def test_step_counts_are_parsed_into_the_configuration():
    config = PretrainingConfig().with_steps(parse_steps(["sync=20000", "network=10000"]), cuda_graph=False)
    default = PretrainingConfig()
    assert {stage: config.recipes[stage].steps for stage in TRAINED_STAGES} == {
        "sync": 20_000,
        "vae": default.recipes["vae"].steps,
        "clip": default.recipes["clip"].steps,
        "network": 10_000,
    }
    assert not any(recipe.cuda_graph for recipe in config.recipes.values())
    assert PretrainingConfig().with_steps({}).recipes == default.recipes


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("synch=3", "did you mean sync"),
        ("data=3", "no stage with steps"),
        ("sync", "expected a number"),
        ("sync=0", "expected a number"),
        ("sync=-4", "expected a number"),
        ("sync=1e4", "expected a number"),
    ],
)
def test_invalid_step_counts_are_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        parse_steps([word])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"), [(["--steps", "synch=3"], "sync"), (["--device", "gpux"], "auto, cpu, cuda")]
)
def test_wrong_flags_are_refused_before_any_work(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        run_script(ROOT / "training/pretrain_tiny.py", *flags)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out
