"""A step's clips go through the network together as far as memory allows, and train the same."""

import mini_training
import pytest
import torch
from helpers import assert_close, filled, mini

from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.micro_batch import choose_micro_batch, merges_batches
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import train_step
from mmaudio.finetune.validation import build_validation_set, validate
from mmaudio.lora.adapter import LoRAConfig
from mmaudio.lora.checkpoint import read_adapter
from mmaudio.utils import memory

SETTINGS = {"batch_size": 2, "gradient_accumulation_steps": 4, "lora": LoRAConfig(rank=4, alpha=8.0, dropout=0.0)}


def prepare(folder, **settings):
    """A new state, its clips and configuration."""
    config, network = mini_training.build_config(folder, **SETTINGS | settings), mini()
    state = new_state(network, config, 5)
    for name, weight in state.trainable_parameters().items():
        if "lora_B" in name:  # zero at first, and A has no gradient then
            weight.data += 0.05 * filled(name, *weight.shape)
    return state, build_dataset(network, mini_training.mini_clips(5), torch.device("cpu")), config


def limit_memory(network, max_clips):
    """Have the network run out of memory, like a GPU, with more than `max_clips` clips; the sizes of its calls."""
    sizes, predict_velocity = [], network.predict_velocity

    def predict(latent, t, conditions):
        sizes.append(len(latent))
        if len(latent) > max_clips:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return predict_velocity(latent, t, conditions)

    network.predict_velocity = predict
    return sizes


def test_merged_passes_have_the_gradients_of_separate_ones(tmp_path):
    gradients = []
    for merge in (False, True):
        state, clips, config = prepare(tmp_path, merge_batches=merge, max_grad_norm=1e9)
        state.micro_batch = choose_micro_batch(state, clips, config, Distributed())
        sizes = limit_memory(state.network, 8)
        metrics = train_step(state, clips, config, Distributed())
        gradients.append({name: moments["exp_avg"] for name, moments in named_moments(state)})
        assert sizes == ([8] if merge else [2] * 4) and metrics.losses.shape == (8,)
    for name, gradient in gradients[0].items():
        assert gradient.any()
        assert_close(gradients[1][name], gradient, 1e-4)


def named_moments(state):
    """The optimizer's state by the parameter's name: after one step its first moment is the gradient, scaled."""
    return [(name, state.optimizer.state[weight]) for name, weight in state.trainable_parameters().items()]


def test_a_step_that_runs_out_of_memory_is_done_again_at_half_the_size(tmp_path):
    state, clips, config = prepare(tmp_path, merge_batches=False)
    expected = train_step(state, clips, config, Distributed())
    small_state, clips, config = prepare(tmp_path, merge_batches=True)
    small_state.micro_batch = 8
    sizes = limit_memory(small_state.network, 3)
    metrics = train_step(small_state, clips, config, Distributed())
    assert sizes == [8, 4, 2, 2, 2, 2] and small_state.micro_batch == 2
    assert torch.equal(metrics.losses, expected.losses) and metrics.grad_norm == expected.grad_norm
    weights = small_state.trainable_parameters()
    assert all(torch.equal(weights[name], weight) for name, weight in state.trainable_parameters().items())


def test_a_single_clip_that_does_not_fit_is_an_error(tmp_path):
    state, clips, config = prepare(tmp_path)
    limit_memory(state.network, 0)
    with pytest.raises(torch.OutOfMemoryError):
        train_step(state, clips, config, Distributed())


def test_validation_takes_the_batches_that_fit(tmp_path):
    state, clips, config = prepare(tmp_path)
    validation_set = build_validation_set(clips, [f"clip {i}" for i in range(5)], 8)
    expected = validate(state, validation_set, config, Distributed())
    sizes = limit_memory(state.network, 3)
    assert_close(validate(state, validation_set, config, Distributed()), expected, 1e-5)
    assert max(sizes) == 8 and sum(size for size in sizes if size <= 3) == 40


def test_the_size_is_bounded_by_memory_and_batch_size(tmp_path, monkeypatch):
    state, clips, config = prepare(tmp_path, merge_batches=True)
    assert choose_micro_batch(state, clips, config, Distributed()) == 8
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    assert choose_micro_batch(state, clips, config, Distributed()) == 2
    state.micro_batch = 4
    assert choose_micro_batch(state, clips, config, Distributed()) == 4
    config.merge_batches = False
    assert choose_micro_batch(state, clips, config, Distributed()) == 2


def test_a_batch_size_that_is_not_the_default_is_an_upper_bound(tmp_path):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for batch_size, merges in ((8, True), (4, False), (16, False)):
        config = mini_training.build_config(tmp_path, batch_size=batch_size)
        assert merges_batches(config, gpu) is merges and merges_batches(config, cpu) is False
        config.merge_batches = True
        assert merges_batches(config, cpu)


@pytest.mark.slow
def test_a_resumed_run_keeps_the_size_bit_for_bit(tmp_path):
    settings = SETTINGS | {"merge_batches": True, "lora": LoRAConfig(rank=4, alpha=8.0), "schedule": "constant"}
    networks = [mini() for _ in range(3)]
    for network in networks[:2]:  # the last one could take all 8 clips, with other dropout masks
        limit_memory(network, 5)
    whole = mini_training.train_mini(tmp_path / "whole", networks[0], **settings)
    mini_training.train_mini(tmp_path / "parts", networks[1], **settings | {"max_steps": 3})
    parts = mini_training.train_mini(tmp_path / "parts", networks[2], **settings)
    first, second = (read_adapter(each.folder / "lora_checkpoints" / "last_lora.pt").state for each in (whole, parts))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
