"""Samples of the base, at which a step holds the adapted velocity to the base's: their gradients, drift and draws."""

import dataclasses

import mini_training
import pytest
import torch
from helpers import assert_close, filled, mini
from mini_adapters import KINDS
from mini_training import assert_same_gradients

from mmaudio.finetune import step
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.state import new_state
from mmaudio.lora.adapter import LoRAConfig

CPU = torch.device("cpu")


def base_samples(network, count=6):
    """Samples of text alone, as training holds the adapter to the base at them."""
    clips = mini_training.mini_clips(count, seed=7)
    return build_dataset(network, dataclasses.replace(clips, std=torch.zeros_like(clips.std)), CPU)


def velocity_drift(state, samples, draws, dtype=torch.float32):
    """Mean squared distance of the adapted velocity from the base's at the drawn samples, with its gradient."""
    config = dataclasses.replace(mini_training.build_config("", preserve_base=1.0), amp=dtype == torch.bfloat16)
    base = step.prepare_base_samples(state, samples, draws, config, 3)
    _, drift = step.compute_losses_and_drift(state.network, samples, draws, base, dtype)
    return drift.mean()


def drift_after_training(tmp_path, steps=8, **settings):
    config, network = mini_training.build_config(tmp_path, max_steps=steps, warmup_steps=0, **settings), mini()
    state, clips, samples = new_state(network, config, 5, 6), mini_training.mini_clips(5), base_samples(network)
    dataset = build_dataset(network, clips, CPU)
    for _ in range(steps):
        last = step.train_step(
            state, dataset, config, Distributed(), base_samples=(config.preserve_base and samples) or None
        )
    draws = state.base_draws.draw(16, 1.0, 0.0)
    with torch.no_grad():
        return float(velocity_drift(state, samples, draws)), last.loss, state


@pytest.mark.slow
def test_a_fresh_adapter_has_no_velocity_drift(tmp_path):
    assert drift_after_training(tmp_path, steps=0 + 1, learning_rate=1e-12)[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [LoRAConfig(4, 8.0, 0.0, bias="all"), LoRAConfig(enabled=False)], ids=["bias", "all"])
def test_velocity_drift_in_bfloat16_is_measured_against_the_base(tmp_path, lora):
    config = mini_training.build_config(tmp_path, lora=lora)
    state = new_state(mini(), config, 5)
    for name, weight in state.trainable_parameters().items():
        weight.data += 0.05 * filled(name, *weight.shape)
    clips, draws = build_dataset(state.network, mini_training.mini_clips(5), CPU), state.draws.draw(4, 1.0, 1.0)
    exact, rounded = (velocity_drift(state, clips, draws, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert rounded.item() == pytest.approx(exact.item(), rel=5e-2)
    rounded.backward()
    assert all(weight.grad.any() for weight in state.trainable_parameters().values() if weight.grad is not None)


def preservation_gradients(tmp_path, lora, **settings):
    """Gradients of a step that holds samples of the base, of an adapter that is not fresh, and those expected."""
    config = mini_training.build_config(tmp_path, lora=lora, preserve_base=2.0, weight_decay=0, **settings)
    network = mini()
    state, samples = new_state(network, config, 5, 6), base_samples(network)
    for name, weight in state.trainable_parameters().items():
        weight.data += 0.05 * filled(name, *weight.shape)
    dataset = build_dataset(network, mini_training.mini_clips(5), CPU)
    base_draws = state.base_draws.draw(config.base_samples_per_step, 0.5, 0.0)
    draws = state.draws.draw(config.effective_batch_size, 0.3, 0.3)
    velocity = step.predict_base_velocity(state, samples, base_draws, torch.float32)
    x_t, conditions, _ = step.network_inputs(network, samples, base_draws)
    drift = (network.predict_velocity(x_t, base_draws.t, conditions) - velocity).square().mean()
    losses = step.compute_losses(network, dataset, draws, torch.float32)
    (losses.mean() + 2.0 * drift).backward()
    expected = take_gradients(state)
    base = step.prepare_base_samples(state, samples, base_draws, config, config.batch_size)
    rest = base, config, step.accumulate_gradients, config.batch_size
    got_losses = step.accumulate_passes(state, dataset, draws, *rest)
    assert_close(got_losses, losses.detach())
    return take_gradients(state), expected


def take_gradients(state):
    """The gradients by name, which are cleared."""
    gradients = {name: weight.grad for name, weight in state.trainable_parameters().items() if weight.grad is not None}
    state.optimizer.zero_grad()
    return gradients


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rslora", "dora", "pissa", "all biases"])
def test_the_base_is_preserved_in_micro_batches(tmp_path, kind):
    gradients, expected = preservation_gradients(tmp_path, KINDS[kind], batch_size=2, gradient_accumulation_steps=2)
    assert_same_gradients(gradients, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "share", "lengths"), [(4, 0.25, [5]), (2, 0.5, [3, 3]), (2, 1.0, [2, 2, 2, 2])])
def test_few_samples_go_through_the_network_together_with_the_clips(tmp_path, monkeypatch, size, share, lengths):
    trained, accumulate = [], step.accumulate_passes

    def record(*arguments):
        state = arguments[0]
        hook = state.network.fused_blocks[0].register_forward_hook(
            lambda _module, inputs, _out: trained.append(len(inputs[0])) if torch.is_grad_enabled() else None
        )
        losses = accumulate(*arguments)
        hook.remove()
        return losses

    monkeypatch.setattr(step, "accumulate_passes", record)
    settings = {"batch_size": size, "gradient_accumulation_steps": 4 // size, "preserve_share": share}
    gradients, expected = preservation_gradients(tmp_path, LoRAConfig(4, 8.0, 0.0), **settings)
    assert_same_gradients(gradients, expected, 1e-4)
    assert trained == lengths


@pytest.mark.slow
def test_a_step_with_samples_of_the_base_is_done_again_in_halves(tmp_path, monkeypatch):
    settings = {"batch_size": 4, "preserve_share": 0.5, "preserve_base": 2.0, "lora": LoRAConfig(4, 8.0, 0.0)}
    config = mini_training.build_config(tmp_path, gradient_accumulation_steps=1, weight_decay=0, **settings)
    results = []
    for memory in (6, 3):
        network = mini()
        state, accumulate = new_state(network, config, 5, 6), step.accumulate_gradients

        def bounded(state, dataset, draws, config, base=None, memory=memory, accumulate=accumulate):
            if len(draws) + (len(base.draws) if base else 0) > memory:
                raise torch.OutOfMemoryError("too many at once")
            return accumulate(state, dataset, draws, config, base)

        with monkeypatch.context() as patched:
            patched.setattr(step, "accumulate_gradients", bounded)
            dataset = build_dataset(network, mini_training.mini_clips(5), CPU)
            metrics = step.train_step(state, dataset, config, Distributed(), base_samples=base_samples(network))
        results.append((metrics.grad_norm, metrics.loss, state.micro_batch))
    (norm, loss, size), (half_norm, half_loss, half_size) = results
    assert (size, half_size) == (0, 2)
    assert half_norm == pytest.approx(norm, rel=1e-4) and half_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_preserving_the_base_keeps_the_velocity_at_its_samples(tmp_path):
    (free_drift, free_loss, _), (drift, loss, state) = (
        drift_after_training(tmp_path),
        drift_after_training(tmp_path, preserve_base=10.0),
    )
    assert 0 < drift < 0.5 * free_drift, "the velocity at the base's samples stays nearer to the base model's"
    assert all(weight.requires_grad for weight in state.trainable_parameters().values()) and loss != free_loss


def test_the_clips_draws_are_the_same_with_and_without_samples_of_the_base(tmp_path):
    config = mini_training.build_config(tmp_path)
    plain, preserving = new_state(mini(), config, 5), new_state(mini(), config, 5, 6)
    preserving.base_draws.draw(2, 1.0, 0.0)
    for one, other in zip(
        plain.draws.draw(4, 0.1, 0.1).tensors(), preserving.draws.draw(4, 0.1, 0.1).tensors(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_weight_decay_pulls_the_adapter_toward_nothing(tmp_path):
    norms = [
        sum(
            float(weight.detach().square().sum())
            for weight in drift_after_training(tmp_path, weight_decay=decay)[2].trainable_parameters().values()
        )
        for decay in (0.0, 1.0)
    ]
    assert norms[1] < norms[0]
