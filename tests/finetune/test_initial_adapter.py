"""Runs that start from an adapter: checked first, lineage in the file, and resumed bit for bit."""

import signal
from dataclasses import replace
from pathlib import Path

import mini_training
import pytest
import torch
from hub_server import Repository, serve_hub, use_hub

from mmaudio.config import TrainConfig, ValidationConfig
from mmaudio.data.clip_table import write_clips
from mmaudio.errors import ConfigError, DataError, TrainingError, WeightsError
from mmaudio.finetune import initial_adapter
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.initial_adapter import InitialAdapter, check_held_out, load_initial_adapter
from mmaudio.finetune.run_inputs import RunInputs
from mmaudio.finetune.tracker import Tracker
from mmaudio.finetune.trainer import train, train_adapter
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora
from mmaudio.lora.checkpoint import AdapterFile, read_adapter, write_adapter
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.model.networks import build_network

BEST = Path("exp", "lora_checkpoints", "best_lora.pt")


def write_tiny(path, rank=4, **fields):
    """An adapter of tiny_16k's shapes."""
    lora = LoRAConfig(rank=rank)
    model = add_lora(build_network("tiny_16k"), lora, torch.Generator().manual_seed(0))
    adapter = AdapterFile(lora, adapter_state(model), "tiny_16k", "0" * 64, targets=list(lora_layers(model)))
    write_adapter(path, replace(adapter, **fields))
    return path


def train_on(folder, first, **settings):
    """The miniature, trained on from the adapter in the folder `first`."""
    path = first / BEST
    initial = InitialAdapter(path, read_adapter(path), "f" * 64)
    config = mini_training.build_config(folder, init_from=str(path), **settings)
    inputs = RunInputs(
        config, "0" * 64, mini_training.mini_clips(5, seed=7), mini_training.mini_clips(3, "val"), initial
    )
    return train_adapter(mini_training.mini(), inputs, Distributed()), read_adapter(folder / BEST)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a first run."""
    folder = tmp_path_factory.mktemp("first")
    mini_training.train_mini(folder)
    return folder


@pytest.mark.slow
def test_training_goes_on_where_the_first_adapter_is_with_its_lineage_in_the_file(first, tmp_path, capsys):
    result, adapter = train_on(tmp_path, first, lora=LoRAConfig(rank=8, alpha=16.0, dropout=0.0))
    before = read_adapter(first / BEST)
    plain = mini_training.train_mini(tmp_path / "plain", train=mini_training.mini_clips(5, seed=7))
    assert result.base_loss < plain.base_loss and adapter.lora.rank == 8
    (ancestor,) = adapter.lineage
    assert ancestor["train"] == before.data["train"] and ancestor["exp_id"] == "exp"
    assert (ancestor["file"], ancestor["step"]) == ("best_lora.pt", before.step)
    printed = capsys.readouterr().out
    assert f"init_from:  {first / BEST}, step {before.step}, rank 4" in printed
    assert "for the adapter that it began with" in printed or "better than the adapter that it began with" in printed


@pytest.mark.slow
def test_a_run_that_is_interrupted_resumes_bit_for_bit(first, tmp_path, monkeypatch):
    settings = {"max_steps": 4, "eval_every": 4, "validation": ValidationConfig(enabled=False)}
    train_on(tmp_path / "whole", first, **settings)
    original = Tracker.log_step

    def interrupted(self, state, metrics):
        original(self, state, metrics)
        if state.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "log_step", interrupted)
        result, _ = train_on(tmp_path / "cut", first, **settings)
    assert (result.reason, result.step) == ("interrupted", 2)
    train_on(tmp_path / "cut", first, **settings)
    whole, resumed = (read_adapter((tmp_path / name / BEST).with_name("last_lora.pt")) for name in ("whole", "cut"))
    assert whole.step == resumed.step == 4 and whole.lineage == resumed.lineage
    assert [key for key, value in whole.state.items() if not torch.equal(value, resumed.state[key])] == []


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "starts_from", "equal"), [("constant", True, True), ("cosine", False, False)])
def test_raising_max_steps_is_a_whole_run_with_a_constant_rate_alone(schedule, starts_from, equal, first, tmp_path):
    """With `init_from`, too; the rates of a falling schedule follow from `max_steps`, also without it."""

    def last_adapter(name, *max_steps):
        for steps in max_steps:
            settings = {"schedule": schedule, "warmup_steps": 0, "max_steps": steps}
            if starts_from:
                train_on(tmp_path / name, first, **settings)
            else:
                mini_training.train_mini(tmp_path / name, **settings)
        return read_adapter((tmp_path / name / BEST).with_name("last_lora.pt"))

    raised, whole = last_adapter("raised", 3, 6), last_adapter("whole", 6)
    assert raised.step == whole.step == 6
    assert all(torch.equal(raised.state[key], whole.state[key]) for key in whole.state) == equal


@pytest.mark.slow
def test_another_first_adapter_does_not_continue_the_run(first, tmp_path):
    train_on(tmp_path, first, max_steps=2)
    train, held_out = mini_training.mini_clips(5, seed=7), mini_training.mini_clips(3, "val")
    inputs = RunInputs(mini_training.build_config(tmp_path), "0" * 64, train, held_out)
    with pytest.raises(TrainingError, match=r"initial adapter: f+, now None"):
        train_adapter(mini_training.mini(), inputs, Distributed())


def test_it_is_checked_before_anything_else(tmp_path):
    path = write_tiny(tmp_path / "a.pt", rank=8)
    missing = {"clips_tsv": str(tmp_path / "none.tsv"), "features_dir": str(tmp_path / "none")}
    for settings, error, message in (
        ({"init_from": str(tmp_path / "gone.pt")}, WeightsError, "gone.pt"),
        ({"init_from": str(path), "model": "small_16k"}, WeightsError, "was made for tiny_16k, not for small_16k"),
        ({"init_from": str(path), "rank": 4}, ConfigError, r"rank is 8 .* set lora\.rank=8 or more"),
    ):
        with pytest.raises(error, match=message):
            train(TrainConfig(**{"model": "tiny_16k"} | missing | settings), torch.device("cpu"))


def test_held_out_videos_that_were_trained_on_before_are_refused(tmp_path):
    older = {"file": "a.pt", "sha256": "0", "step": 1, "exp_id": "a", "train": {"videos": ["test1.mp4"], "ids": []}}
    data = {"train": {"videos": ["train0.mp4"], "ids": ["train0"]}, "lineage": [older]}
    adapter = AdapterFile(LoRAConfig(rank=4), {}, "tiny_16k", "", data=data)
    initial = InitialAdapter(tmp_path / "a.pt", adapter, "0")
    config = TrainConfig(model="tiny_16k", clips_tsv=str(tmp_path / "clips.tsv"))
    rows = [*mini_training.clip_rows(3), *mini_training.clip_rows(3, "test")]
    write_clips(tmp_path / "clips.tsv", rows)
    with pytest.raises(DataError, match=r"held out here \(1 clips, as test1\)"):
        check_held_out(initial, config, [])
    write_clips(tmp_path / "clips.tsv", [row for row in rows if row.video != "test1.mp4"])
    check_held_out(initial, config, mini_training.clip_rows(3, "val"))
    with pytest.raises(DataError, match=r"1 clips, as train0"):
        check_held_out(initial, config, [replace(mini_training.clip_rows(1)[0], split="val", video="train0.mp4")])


def test_without_init_from_there_is_none():
    assert load_initial_adapter(TrainConfig(model="tiny_16k")) is None
    assert initial_adapter.start_name(TrainConfig(init_from="a.pt")) != initial_adapter.start_name(TrainConfig())


@pytest.mark.slow
def test_it_may_be_on_the_hub(tmp_path, monkeypatch):
    write_tiny(tmp_path / "best_lora.pt", step=5)
    monkeypatch.chdir(tmp_path)
    with serve_hub() as site:
        use_hub(site, tmp_path / "home", monkeypatch)
        site.repositories["anna/dogs"] = Repository()
        site.repositories["anna/dogs"].commit({p.name: p.read_bytes() for p in (tmp_path / "best_lora").iterdir()})
        config = TrainConfig(model="tiny_16k", init_from="anna/dogs", lora=LoRAConfig(rank=4))
        with pytest.raises(WeightsError, match="not in the hub's cache"):
            load_initial_adapter(replace(config, offline=True))
        first = load_initial_adapter(config)
        again = load_initial_adapter(replace(config, offline=True))
    assert first is not None and again is not None and first.lineage == again.lineage
    assert (first.lineage[0]["file"], first.lineage[0]["step"]) == ("dogs", 5)
