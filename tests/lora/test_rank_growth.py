"""Progressive ranks: growing keeps the function and the optimizer's state, and runs resume across it bit for bit."""

import mini_training
import pytest
import torch
from helpers import is_close, mini, mini_velocity
from mini_adapters import LINEARS

from mmaudio.config import compose
from mmaudio.errors import ConfigError
from mmaudio.finetune import loop
from mmaudio.finetune.dataset import build_dataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.state import new_state
from mmaudio.finetune.step import train_step
from mmaudio.lora.adapter import LoRAConfig, Phase, progressive
from mmaudio.lora.checkpoint import attach_adapter, read_adapter

TWO = [Phase(4, 3), Phase(8, 3)]
KINDS = {
    "lora": {},
    "of another scale": {"phases": [Phase(4, 3, 8.0), Phase(8, 3, 40.0)]},
    "rslora": {"use_rslora": True},
    "dora": {**LINEARS, "use_dora": True},
    "pissa": {**LINEARS, "init_lora_weights": "pissa", "dropout": 0.0},
}


def lora(**changed):
    return LoRAConfig(**{"rank": 4, "alpha": 8.0, "dropout": 0.1, "phases": TWO} | changed)


def after_three_steps(folder, **changed):
    """The state at the end of the first phase."""
    config = mini_training.build_config(folder, lora=lora(**changed), weight_decay=0.0, ema_decay=0.9)
    network = mini()
    state = new_state(network, config, 5)
    clips = build_dataset(network, mini_training.mini_clips(5), torch.device("cpu"))
    for _ in range(3):
        train_step(state, clips, config, Distributed())
    state.model.eval()
    return state, clips, config


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_growing_keeps_the_function(tmp_path, name):
    state, _, _ = after_three_steps(tmp_path, **KINDS[name])
    before = mini_velocity(state.network)
    with state.use_ema():
        averaged = mini_velocity(state.network)
    assert state.phase_is_over and not is_close(before, mini_velocity(mini()), 1e-3)
    state.enter_phase(1, torch.Generator().manual_seed(0))
    assert is_close(mini_velocity(state.network), before)
    with state.use_ema():
        assert is_close(mini_velocity(state.network), averaged)
    shapes = {weight.shape for key, weight in state.trainable_parameters().items() if "qkv.lora_A" in key}
    assert shapes == {(8, 64)} and not state.phase_is_over


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "of another scale"])
def test_the_optimizer_state_of_the_old_ranks_is_preserved(tmp_path, name):
    state, clips, config = after_three_steps(tmp_path, **KINDS[name])
    key_a, key_b = (f"base_model.model.fused_blocks.0.attn.qkv.lora_{half}.default.weight" for half in "AB")
    before = {
        key: state.optimizer.state[state.trainable_parameters()[key]]["exp_avg_sq"].clone() for key in (key_a, key_b)
    }
    old = {key: state.trainable_parameters()[key].detach().clone() for key in (key_a, key_b)}
    state.enter_phase(1, torch.Generator().manual_seed(0))
    factor = 2.0 / (40 / 8) if name == "of another scale" else 1.0
    after = {key: state.optimizer.state[state.trainable_parameters()[key]]["exp_avg_sq"] for key in before}
    assert torch.equal(after[key_a][:4], before[key_a]) and not after[key_a][4:].any()
    torch.testing.assert_close(after[key_b][:, :4], before[key_b] / factor**2, rtol=1e-5, atol=0)
    assert not after[key_b][:, 4:].any()
    a, b = state.trainable_parameters()[key_a], state.trainable_parameters()[key_b]
    assert torch.equal(a[:4], old[key_a]) and a[4:].any() and not b[:, 4:].any()
    torch.testing.assert_close(b[:, :4].detach(), factor * old[key_b], rtol=1e-6, atol=0)
    train_step(state, clips, config, Distributed())
    assert b[:, 4:].any(), "the new part learns"


def weights(outcome, name="last_lora.pt"):
    return read_adapter(outcome.folder / "lora_checkpoints" / name)


class Killed(BaseException):
    """Stands for a SIGKILL."""


def run_phases(folder, name):
    """A training through both phases."""
    return mini_training.train_mini(folder, lora=lora(**KINDS[name]), weight_decay=0.0, ema_decay=0.9, save_every=1)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Runs without interruption by the kind of adapter."""
    return {name: run_phases(tmp_path_factory.mktemp(name), name) for name in ("lora", "pissa")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "pissa"])
@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_run_killed_at_a_phase_boundary_resumes_identically(wholes, tmp_path, monkeypatch, name, step):
    whole = wholes[name]
    assert whole.step == 6 and weights(whole).lora.rank == (8 if name == "lora" else 12)
    original = loop.train_step

    def dying(state, *arguments):
        if state.step == step:
            raise Killed
        return original(state, *arguments)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop, "train_step", dying)
        run_phases(tmp_path, name)
    parts = run_phases(tmp_path, name)
    assert parts.new_steps == 6 - step and parts.best_loss == whole.best_loss
    for file in ("last_lora.pt", "average_lora.pt", "best_lora.pt"):
        one, other = weights(parts, file), weights(whole, file)
        assert one.lora == other.lora and all(torch.equal(one.state[key], other.state[key]) for key in one.state), file
    attach_adapter(mini(), weights(parts), "tiny_16k")


@pytest.mark.slow
def test_a_run_prints_its_phases(tmp_path, capsys):
    mini_training.train_mini(tmp_path, lora=lora())
    output = capsys.readouterr().out
    assert "phases:     rank 4 to step 3, rank 8 to step 6" in output and "step 3: the rank is 8 from here" in output


@pytest.mark.slow
def test_phases_are_checked():
    assert lora().in_phase(1) == LoRAConfig(rank=8, alpha=16.0, dropout=0.1, max_steps=3)
    for overrides, words in (
        (["lora.phases=[{rank:8,max_steps:2},{rank:4,max_steps:2}]"], "ranks 8, 4: a rank grows"),
        (["lora.phases=[{rank:8,max_steps:0}]"], "phase 1: rank=8, max_steps=0"),
        (["lora.phases=[{rank:8,max_steps:2}]", "optimizer=prodigy"], "its state cannot grow with lora.phases"),
        (["lora.phases=[{rank:8,max_steps:2}]", "alpha=4"], "alpha=4 has no effect beside lora.phases"),
    ):
        with pytest.raises(ConfigError, match=words):
            compose(overrides)
    with pytest.raises(ConfigError, match="phase 2 has no max_steps"):
        progressive([LoRAConfig(rank=4, max_steps=1), LoRAConfig(rank=8)])
    with pytest.raises(ConfigError, match="phase 2 differs from the first"):
        progressive([LoRAConfig(rank=4, max_steps=1), LoRAConfig(rank=8, max_steps=1, dropout=0.3)])


def test_the_same_phases_serve_two_adapters():
    phases = [Phase(4, 3), Phase(8, 3)]
    first, second = LoRAConfig(4, 8.0, phases=phases), LoRAConfig(4, 4.0, phases=phases)
    assert (first.in_phase(1).alpha, second.in_phase(1).alpha) == (16.0, 8.0) and phases == [Phase(4, 3), Phase(8, 3)]
