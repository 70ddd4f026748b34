"""Optimizers, their parameter groups, and the rate of every step."""

import sys

import mini_training
import pytest
import torch
from helpers import mini
from torch import nn

from mmaudio.errors import ConfigError
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.optimizers import (
    FINAL_LR_FACTOR,
    build_optimizer,
    build_parameter_groups,
    learning_rate_at,
    set_learning_rate,
)
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import train_step
from mmaudio.lora.adapter import LoRAConfig


@pytest.mark.parametrize(
    "schedule, middle, last", [("constant", 1.0, 1.0), ("linear", 0.515, 0.1), ("cosine", 0.515, 0.06)]
)
def test_learning_rate_schedules(tmp_path, schedule, middle, last):
    config = mini_training.build_config(tmp_path, learning_rate=1.0, warmup_steps=4, max_steps=24, schedule=schedule)
    rates = [learning_rate_at(number, config) for number in range(25)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[14] == pytest.approx(middle) and FINAL_LR_FACTOR <= rates[23] <= last
    assert rates[24] == pytest.approx(1.0 if schedule == "constant" else FINAL_LR_FACTOR)


def test_without_a_warm_up_the_first_step_has_the_full_rate(tmp_path):
    assert learning_rate_at(0, mini_training.build_config(tmp_path, learning_rate=0.5, warmup_steps=0)) == 0.5


def test_lora_plus_lets_the_b_matrices_learn_faster(tmp_path):
    config = mini_training.build_config(tmp_path, lora_plus_ratio=16.0)
    state = new_state(mini(), config, 5)
    groups = {group["factor"]: group["params"] for group in state.optimizer.param_groups}
    for name, weight in state.trainable_parameters().items():
        assert any(weight is one for one in groups[16.0 if "lora_B" in name else 1.0])
    set_learning_rate(state.optimizer, 0.5)
    assert {group["factor"]: group["lr"] for group in state.optimizer.param_groups} == {1.0: 0.5, 16.0: 8.0}


@pytest.mark.slow
def test_lora_plus_moves_b_by_its_ratio(tmp_path):
    moved = []
    for ratio in (1.0, 4.0):
        config, network = mini_training.build_config(tmp_path, lora_plus_ratio=ratio, weight_decay=0.0), mini()
        state = new_state(network, config, 5)
        train_step(
            state, build_dataset(network, mini_training.mini_clips(5), torch.device("cpu")), config, Distributed()
        )
        moved.append(
            torch.cat([w.detach().flatten() for name, w in state.trainable_parameters().items() if "lora_B" in name])
        )
    assert torch.allclose(moved[1], 4 * moved[0], rtol=1e-4)  # from zero, the first step is the rate times the sign


def test_adamw_is_fused(tmp_path):
    optimizer = build_optimizer({"w": nn.Parameter(torch.ones(2, 2))}, mini_training.build_config(tmp_path))
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]


def test_parameters_of_one_dimension_are_not_decayed(tmp_path):
    weights = {"w": nn.Parameter(torch.ones(2, 2)), "b": nn.Parameter(torch.ones(2))}
    groups = build_parameter_groups(weights, mini_training.build_config(tmp_path, weight_decay=0.3))
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.3, 1), (0.0, 1)]


@pytest.mark.parametrize("name, package", [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_an_optimizer_that_is_not_installed_is_named(tmp_path, monkeypatch, name, package):
    for module in (package, f"{package}.optim"):  # where it is installed, peft has imported both
        monkeypatch.setitem(sys.modules, module, None)
    weights = {"w": nn.Parameter(torch.ones(2, 2))}
    with pytest.raises(ConfigError, match=rf"optimizer={name} needs {package}.*mmaudio-lora\[optimizers\]"):
        build_optimizer(weights, mini_training.build_config(tmp_path, optimizer=name))


@pytest.mark.slow
def test_prodigy_learns_without_a_rate_and_resumes(tmp_path):
    pytest.importorskip("prodigyopt")
    settings = {"optimizer": "prodigy", "learning_rate": 1.0, "warmup_steps": 0}
    outcome = mini_training.train_mini(tmp_path / "whole", max_steps=8, **settings)
    assert outcome.best_loss < outcome.base_loss
    mini_training.train_mini(tmp_path / "parts", max_steps=4, schedule="constant", **settings)
    parts = mini_training.train_mini(tmp_path / "parts", max_steps=8, schedule="constant", **settings)
    whole = mini_training.train_mini(tmp_path / "constant", max_steps=8, schedule="constant", **settings)
    assert parts.best_loss == whole.best_loss and parts.new_steps == 4


def test_eight_bit_states_learn_and_resume(tmp_path):
    pytest.importorskip("bitsandbytes")
    weight = nn.Parameter(torch.ones(128, 128))
    optimizer = build_optimizer({"w": weight}, mini_training.build_config(tmp_path, optimizer="adamw8bit"))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert float(weight.detach().mean()) < 1 and optimizer.state[weight]["state1"].dtype == torch.uint8
    settings = {"optimizer": "adamw8bit", "schedule": "constant", "lora": LoRAConfig(rank=32, alpha=64.0)}
    mini_training.train_mini(tmp_path / "parts", max_steps=3, **settings)
    parts = mini_training.train_mini(tmp_path / "parts", max_steps=6, **settings)
    whole = mini_training.train_mini(tmp_path / "whole", max_steps=6, **settings)
    assert whole.best_loss < whole.base_loss and parts.best_loss == whole.best_loss and parts.new_steps == 3
