"""One step: the objective of the golden numbers, accumulation, checkpointing, schedules, non-finite values."""

import dataclasses

import pytest
import small_world
import torch
from conftest import assert_close, filled, golden
from test_lora import adapted
from test_networks import mini, mini_inputs

from mmaudio.data.features import Features, feature_set
from mmaudio.errors import ConfigError, TrainingError
from mmaudio.finetune import step
from mmaudio.finetune.dataset import material
from mmaudio.finetune.precision import seeded
from mmaudio.finetune.state import Draws, learning_rate, new_state
from mmaudio.finetune.team import Team
from mmaudio.model.lora import LoRAConfig

CPU = torch.device("cpu")


def golden_clips():
    """The golden training inputs as two clips, and their draws."""
    inputs = mini_inputs()
    mean, std, eps, noise = (filled(f"train/{name}", 2, 30, 8) for name in ("mean", "std", "eps", "x0"))
    features = Features(mean, 0.1 * std.abs(), inputs["clip_f"], inputs["sync_f"], inputs["text_f"])
    kept = torch.zeros(2, dtype=torch.bool)
    draws = Draws(torch.arange(2), eps, noise, filled("train/t", 2).sigmoid(), kept, kept, 0)
    return feature_set(features, small_world.clip_rows(2), "tiny_16k"), draws


def test_objective_and_gradients_are_the_golden_ones():
    network, model = adapted()
    clips, draws = golden_clips()
    losses = step.losses(network, material(network, clips, CPU), draws, torch.float32)
    losses.mean().backward()
    expected = golden("lora_mini_v1")
    assert_close(losses, expected["train.loss"])
    gradients = {
        name.replace(".default", ""): weight.grad for name, weight in model.named_parameters() if weight.requires_grad
    }
    compared = [key for key in expected if key.startswith("grad.")]
    assert compared
    for key in compared:
        assert_close(gradients[key.removeprefix("grad.")], expected[key])


@pytest.mark.parametrize("masks", [(True, False), (False, True), (True, True)])
def test_dropping_after_projecting_is_dropping_before(masks):
    network = mini()
    clips, _ = golden_clips()
    no_video, no_text = (torch.tensor([mask, False]) for mask in masks)
    once = material(network.requires_grad_(False), clips, CPU)
    assert once.projected is not None
    live = material(network.requires_grad_(True), clips, CPU)
    assert live.projected is None, "trained projections cannot be computed once"
    index = torch.tensor([1, 0])
    got = once.conditions(network, index, no_video, no_text)
    expected = live.conditions(network, index, no_video, no_text)
    for one, other in zip(got.tensors(), expected.tensors(), strict=True):
        assert_close(one, other, 1e-5)


def after_one_step(tmp_path, team=Team(), **settings):  # noqa: B008 - frozen
    """The adapter's B matrices after a step without LoRA dropout."""
    lora = LoRAConfig(rank=4, alpha=8.0, dropout=0.0)
    config = small_world.config(tmp_path, lora=lora, max_grad_norm=1e9, **settings)
    network = mini()
    state = new_state(network, config, 5)
    metrics = step.train_step(state, material(network, small_world.clips(5), CPU), config, team)
    return metrics, torch.cat([weight.detach().flatten() for weight in state.trained().values()]), state


def test_accumulation_is_the_large_batch(tmp_path):
    small, weights, _ = after_one_step(tmp_path, batch_size=1, gradient_accumulation_steps=4)
    large, expected, _ = after_one_step(tmp_path, batch_size=4, gradient_accumulation_steps=1)
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    assert small.grad_norm == pytest.approx(large.grad_norm, rel=1e-4)
    assert torch.allclose(weights, expected, atol=2e-4)  # Adam divides: noise in a tiny gradient shows as a share of lr


def test_checkpointing_gives_the_same_gradients(tmp_path):
    plain, _, _ = after_one_step(tmp_path)
    checkpointed, _, state = after_one_step(tmp_path, gradient_checkpointing=True)
    assert state.network.gradient_checkpointing
    assert (checkpointed.loss, checkpointed.grad_norm) == (
        pytest.approx(plain.loss, rel=1e-6), pytest.approx(plain.grad_norm, rel=1e-5),
    )  # fmt: skip


def test_a_step_changes_the_adapter_alone(tmp_path):
    base = {key: value.clone() for key, value in mini().state_dict().items()}
    _, _, state = after_one_step(tmp_path)
    kept = {
        key.replace(".base_layer", ""): value for key, value in state.network.state_dict().items() if "lora" not in key
    }
    assert kept.keys() == base.keys() and all(torch.equal(kept[key], base[key]) for key in base)
    assert all(weight.abs().sum() > 0 for name, weight in state.trained().items() if "lora_B" in name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_before_the_weights_change(tmp_path, bad):
    config, network = small_world.config(tmp_path), mini()
    state = new_state(network, config, 5)
    before = {name: weight.detach().clone() for name, weight in state.trained().items()}
    clips = small_world.clips(5)
    broken = dataclasses.replace(material(network, clips, CPU), mean=torch.full_like(clips.mean, bad))
    with pytest.raises(TrainingError, match=r"step 1: .*preset=stable"):
        step.train_step(state, broken, config, Team())
    assert state.step == 0 and not state.optimizer.state
    assert all(torch.equal(weight, before[name]) for name, weight in state.trained().items())


def test_schedule(tmp_path):
    config = small_world.config(tmp_path, learning_rate=1.0, warmup_steps=4, max_steps=10)
    rates = [learning_rate(number, config) for number in range(10)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True) and 0 < rates[-1] < 0.15
    config.schedule = "constant"
    assert learning_rate(9, config) == 1.0


def test_dropout_is_seeded_and_leaves_the_default_generator_alone():
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed, CPU):
            drawn.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(before, torch.get_rng_state())


def test_loss_by_time():
    found = step.in_bins(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 0.99]))
    assert found == {"0.00-0.25": 2.0, "0.75-1.00": 5.0}


def test_processes_share_a_step():
    assert [Team(rank, 2).share(6) for rank in range(2)] == [slice(0, 3), slice(3, 6)]
    with pytest.raises(ConfigError, match="do not divide among 4"):
        Team(0, 4).share(6)
