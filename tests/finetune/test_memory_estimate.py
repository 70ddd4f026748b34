"""The estimate of the memory that training needs."""

import re

import mini_training
import pytest
import torch
from helpers import mini

from benchmarks.random_inputs import random_features, random_network
from mmaudio.errors import MMAudioError
from mmaudio.finetune import loop
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.memory_estimate import format_memory_line, measure_activation_bytes
from mmaudio.finetune.state import new_state
from mmaudio.lora.adapter import LoRAConfig

CPU = torch.device("cpu")


@pytest.mark.slow
def test_checkpointing_shows_in_the_memory_estimate(tmp_path):
    sizes = []
    for checkpointing in (False, True):
        config, network = mini_training.build_config(tmp_path, gradient_checkpointing=checkpointing), mini()
        state = new_state(network, config, 2)
        sizes.append(
            measure_activation_bytes(state, build_dataset(network, mini_training.mini_clips(2), CPU), config, 1)
        )
    assert 0 < 2 * sizes[1] < sizes[0]


@pytest.mark.slow
def test_a_batch_that_memory_cannot_hold_is_reported_at_the_start(tmp_path):
    output = []
    for size in (2, 10**8):
        config, network = mini_training.build_config(tmp_path, batch_size=size), mini()
        state = new_state(network, config, 2)
        output.append(format_memory_line(state, build_dataset(network, mini_training.mini_clips(2), CPU), None, config))
    assert "are free" not in output[0] and output[1].endswith("lower batch_size and raise gradient_accumulation_steps")


@pytest.mark.slow
def test_the_estimate_counts_the_base_values_in_full_finetuning(tmp_path):
    output, clips = [], random_features("tiny_16k", 1)  # 14 MB of weights
    for lora in (LoRAConfig(rank=4, alpha=8.0), LoRAConfig(enabled=False)):
        config, network = mini_training.build_config(tmp_path, lora=lora), random_network("tiny_16k")
        state = new_state(network, config, 1)
        output.append(format_memory_line(state, build_dataset(network, clips, CPU), None, config))
    assert "(weights 0.01," in output[0] and "(weights 0.03," in output[1]


@pytest.mark.slow
def test_the_estimate_counts_the_samples_of_the_base_that_go_along_with_the_clips(tmp_path):
    activations = []
    for settings in ({}, {"preserve_base": 1.0, "preserve_share": 0.5}, {"preserve_base": 1.0, "preserve_share": 1.0}):
        sizes = {"batch_size": 400, "gradient_accumulation_steps": 2}
        config, network = mini_training.build_config(tmp_path, **sizes, **settings), mini()
        state = new_state(network, config, 2)
        line = format_memory_line(state, build_dataset(network, mini_training.mini_clips(2), CPU), None, config)
        activations.append(float(re.search(r"activations ([\d.]+)", line)[1]))
    assert activations[1] == pytest.approx(1.5 * activations[0], rel=0.05) and activations[2] == activations[0]


@pytest.mark.slow
def test_memory_that_runs_out_in_a_step_is_for_a_smaller_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_step", lambda *_: torch.empty(1 << 50))
    with pytest.raises(
        MMAudioError, match=r"^out of memory .*; take a smaller batch, batch_size=4 .*preset=low_memory$"
    ):
        mini_training.train_mini(tmp_path, held_out=None, max_steps=1)
