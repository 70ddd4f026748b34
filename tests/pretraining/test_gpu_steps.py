"""Steps that wait for no device do what the plain ones do; run here on the CPU, where nothing is recorded."""

import copy
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmaudio.errors import ConfigError, TrainingError
from mmaudio.pretraining import sync_stage as sync
from mmaudio.pretraining.gpu_steps import CPU, HeldSteps, Objective, hold
from mmaudio.pretraining.muon import Optimizers
from mmaudio.pretraining.stages import TRAINED, Plan, steps_from
from mmaudio.pretraining.training_loop import PlainSteps, Recipe, step_generator

RECIPE = Recipe(steps=8, learning_rate=1e-2, muon=1e-2, warmup=2, ema=0.9, parts=2, bf16=False)


def problem():
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))
    module = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(3, 2), "unused": nn.Linear(2, 2)})
    module.register_buffer("scale", torch.ones(3))

    def loss(x):
        return (module["head"](module["blocks"](x)) - 1).square().mean()

    return module, Objective(lambda generator: (torch.randn(2, 4, 7, generator=generator),), loss)


def steps(kind, recipe=RECIPE):
    module, objective = problem()
    optimizer = Optimizers(module, recipe, recordable=kind is HeldSteps)
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    last = functools.partial(step_generator, 7) if kind is HeldSteps else 7
    order = (objective, recipe, last)
    return module, optimizer, average, kind(module, optimizer, average, *order)


def test_held_steps_train_as_plain_ones_do():
    results = []
    for kind in (PlainSteps, HeldSteps):
        module, _, average, run = steps(kind)
        losses = []
        for step in range(RECIPE.steps):
            run.step(step)
            losses.append(run.mean_loss(step))
        results.append((losses, dict(module.state_dict()), average))
    (plain, weights, average), (held, held_weights, held_average) = results
    assert held == pytest.approx(plain, rel=1e-4)
    for name in weights:
        # Muon orthogonalises in bfloat16, one matrix at a time or several
        torch.testing.assert_close(held_weights[name], weights[name], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(held_average[name], average[name], atol=2e-4, rtol=1e-3)
    first = problem()[0].state_dict()
    assert not torch.equal(weights["blocks.1.weight"], first["blocks.1.weight"])
    assert torch.equal(held_weights["unused.weight"], first["unused.weight"])


def test_the_mean_loss_is_of_the_steps_since_the_last_one():
    _, _, _, one = steps(HeldSteps)
    single = []
    for step in range(4):
        one.step(step)
        single.append(one.mean_loss(step))
    _, _, _, run = steps(HeldSteps)
    for step in range(4):
        run.step(step)
    assert run.mean_loss(3) == pytest.approx(sum(single) / 4)
    run.step(4)
    assert run.mean_loss(4) < single[0]


@pytest.mark.parametrize("to", [PlainSteps, HeldSteps])
@pytest.mark.parametrize("kind", [PlainSteps, HeldSteps])
def test_the_optimizers_state_goes_from_one_kind_to_the_other(kind, to):
    module, optimizer, _, run = steps(kind)
    for step in range(4):
        run.step(step)
    state, at = (
        copy.deepcopy(optimizer.state_dict()),
        {name: value.clone() for name, value in module.state_dict().items()},
    )
    ends = []
    other, others, _, onward = steps(to)
    other.load_state_dict(at)
    others.load_state_dict(state)
    for group, rate in zip((part.param_groups[0] for part in others.parts), others.rates, strict=True):
        assert group["lr"] is rate
    for now, part in ((other, onward), (module, run)):
        for step in range(4, 8):
            part.step(step)
        ends.append(now.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], atol=2e-4, rtol=1e-3)


def test_a_loss_that_is_not_finite_is_found_at_the_next_look():
    module, _, _, run = steps(HeldSteps)
    run.step(0)
    with torch.no_grad():
        module["head"].weight.fill_(torch.nan)
    run.step(1)
    run.step(2)
    with pytest.raises(TrainingError, match="step 2, or one of the 2 before it"):
        run.mean_loss(2)


def test_on_a_cpu_clips_stay_in_their_files():
    assert hold([torch.zeros(2, 3)], CPU) is None


def test_segments_are_mirrored_by_indices_as_by_turning_them():
    frames = torch.randint(256, (5, 40, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    clips, first = torch.tensor([0, 4, 2, 2, 1, 3, 0, 4, 1]), torch.tensor([0, 24, 2, 4, 6, 8, 10, 12, 14])
    cut = torch.stack([frames[clip, at : at + 16] for clip, at in zip(clips, first, strict=True)])
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        kinds = torch.tensor(order)
        expected = sync.flip(cut, kinds)
        assert torch.equal(sync.gather(frames, clips, first, kinds), expected)
        assert torch.equal(sync.gather(cut, torch.arange(9), torch.zeros(9, dtype=torch.int64), kinds), expected)


def test_numbers_of_steps_are_read_and_go_into_the_plan():
    plan = Plan().with_steps(steps_from(["sync=20000", "network=10000"]), record=False)
    default = Plan()
    assert {stage: plan.recipes[stage].steps for stage in TRAINED} == {
        "sync": 20_000,
        "vae": default.recipes["vae"].steps,
        "clip": default.recipes["clip"].steps,
        "network": 10_000,
    }
    assert not any(recipe.record for recipe in plan.recipes.values())
    assert Plan().with_steps({}).recipes == default.recipes


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("synch=3", "did you mean sync"),
        ("data=3", "no stage with steps"),
        ("sync", "expected a number"),
        ("sync=0", "expected a number"),
        ("sync=-4", "expected a number"),
        ("sync=1e4", "expected a number"),
    ],
)
def test_other_words_for_steps_are_refused(word, said):
    with pytest.raises(ConfigError, match=said):
        steps_from([word])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"), [(["--steps", "synch=3"], "sync"), (["--device", "gpux"], "auto, cpu, cuda")]
)
def test_wrong_use_of_the_recipe_is_said_before_any_work(flags, said, tmp_path):
    script = Path(__file__).parents[2] / "training/pretrain_tiny.py"
    result = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert said in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
