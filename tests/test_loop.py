"""Training runs on the miniature: learning, resuming bit for bit, stopping, refusing."""

import json
import os
import signal

import pytest
import small_world
import torch
from test_networks import mini

from mmaudio.adapters import read_adapter
from mmaudio.errors import TrainingError
from mmaudio.finetune import checkpoint, loop
from mmaudio.finetune.tracking import Tracker
from mmaudio.model.lora import LoRAConfig


class Killed(BaseException):
    """Stands for a SIGKILL: nothing below catches it."""


def weights(outcome, name="last_lora.pt"):
    return read_adapter(outcome.folder / "lora_checkpoints" / name)


def same(one, other):
    return one.step == other.step and all(torch.equal(one.state[key], other.state[key]) for key in one.state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption."""
    return small_world.run(tmp_path_factory.mktemp("whole"), ema_decay=0.9)


def test_it_learns_and_writes_what_it_should(whole):
    assert (whole.step, whole.reason, whole.new_steps) == (6, "max_steps", 6)
    assert whole.best < 0.98 * whole.base and whole.best_step > 0
    files = {path.name for path in (whole.folder / "lora_checkpoints").iterdir()}
    assert files == {"best_lora.pt", "best_lora", "last_lora.pt", "last_lora", "state.pt", "state.previous.pt"}
    best = weights(whole, "best_lora.pt")
    assert best.step == whole.best_step and best.base_model == "tiny_16k" and best.base_sha256 == "0" * 64
    assert best.data["train"]["ids"] == small_world.clips(5).ids and best.config["lora"]["rank"] == 4
    assert not {"output_dir", "clips_tsv", "features_dir"} & set(best.config), "places stay private"
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = {row["step"]: row for row in rows if "validation/loss" in row}
    assert list(evaluated) == [0, 2, 4, 6]
    assert evaluated[0]["validation_clips"].keys() == {"val0", "val1", "val2"}
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]


def stop_at(monkeypatch, place, count):
    """Let the call number `count` of `place` (owner, name) die before it does anything."""
    owner, name = place
    original, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize(
    "place, count",
    [
        ((loop, "train_step"), 1),
        ((loop, "train_step"), 4),
        ((loop, "validate"), 3),
        ((checkpoint.Checkpoints, "save"), 2),
        ((checkpoint, "write_whole"), 3),
        ((Tracker, "stepped"), 6),
    ],
    ids=[
        "at once",
        "between saves",
        "in an evaluation",
        "before the state is written",
        "in a save",
        "at the last step",
    ],
)
def test_killed_and_continued_is_bit_for_bit_the_whole_run(whole, tmp_path, monkeypatch, place, count):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        stop_at(patched, place, count)
        small_world.run(tmp_path, ema_decay=0.9)
    outcome = small_world.run(tmp_path, ema_decay=0.9)
    assert outcome.step == 6 and outcome.best == whole.best
    for name in ("last_lora.pt", "best_lora.pt"):
        assert same(weights(outcome, name), weights(whole, name)), name
    steps = [json.loads(line)["step"] for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and len(steps) == 10, "no step is reported twice"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(whole, tmp_path, monkeypatch, number):
    original = Tracker.stepped

    def interrupted(self, state, metrics):
        original(self, state, metrics)
        if state.step == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "stepped", interrupted)
        outcome = small_world.run(tmp_path, ema_decay=0.9)
    assert (outcome.reason, outcome.step, outcome.signal) == ("interrupted", 3, number)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    rest = small_world.run(tmp_path, ema_decay=0.9)
    assert rest.new_steps == 3 and same(weights(rest), weights(whole))


def test_a_finished_run_is_not_redone(tmp_path, capsys):
    outcome = small_world.run(tmp_path, max_steps=2)
    before = {path: path.stat().st_mtime_ns for path in outcome.folder.rglob("*")}
    capsys.readouterr()
    again = small_world.run(tmp_path, max_steps=2)
    assert again.new_steps == 0 and "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in outcome.folder.rglob("*")}
    assert small_world.run(tmp_path, max_steps=4).new_steps == 2


def test_changed_settings_are_refused_with_the_differences(tmp_path):
    small_world.run(tmp_path, max_steps=2)
    with pytest.raises(TrainingError, match=r"learning_rate: 0.01, now 0.02.*resume=false"):
        small_world.run(tmp_path, learning_rate=0.02)
    with pytest.raises(TrainingError, match=r"lora.rank: 4, now 8"):
        small_world.run(tmp_path, lora=LoRAConfig(rank=8, alpha=8.0))
    with pytest.raises(TrainingError, match="training clips: 5"):
        small_world.run(tmp_path, train=small_world.clips(4))
    smaller = small_world.run(tmp_path, max_steps=3, batch_size=2, gradient_accumulation_steps=2)
    assert smaller.new_steps == 1, "smaller pieces of the same step continue"
    anew = small_world.run(tmp_path, max_steps=2, learning_rate=0.02, resume=False)
    assert anew.folder.name == "exp-2" and (tmp_path / "exp" / "lora_checkpoints" / "state.pt").exists()


def test_early_stopping(tmp_path):
    settings = small_world.config(tmp_path).early_stopping
    settings.patience, settings.min_delta = 2, 1e9
    outcome = small_world.run(tmp_path, early_stopping=settings)
    assert (outcome.reason, outcome.step) == ("early stopping", 4)
    assert small_world.run(tmp_path, early_stopping=settings).new_steps == 0


def test_without_validation_the_last_is_the_best(tmp_path):
    outcome = small_world.run(tmp_path, held=None, max_steps=2)
    assert same(weights(outcome), weights(outcome, "best_lora.pt")) and outcome.best_step == -1


def test_a_state_cut_off_is_named(tmp_path):
    outcome = small_world.run(tmp_path, max_steps=2)
    path = outcome.folder / "lora_checkpoints" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"state\.pt cannot be read.*state\.previous\.pt"):
        small_world.run(tmp_path)


def test_what_is_said_at_the_start(tmp_path, capsys):
    small_world.run(tmp_path, max_steps=1)
    said = capsys.readouterr().out
    for expected in (
        "rank 4, alpha 8",
        "2 x fused_blocks[*].attn.qkv",
        "6 x joint_blocks[*].latent_block.ffn",
        "3 x joint_blocks[*].clip_block.ffn",
        "5 clips of 3 videos",
        "3 clips of 3 videos",
        "memory:     about",
        "validation loss",
    ):
        assert expected in said, said


def test_checkpointing_shows_in_the_memory_estimate(tmp_path):
    from mmaudio.finetune.dataset import material
    from mmaudio.finetune.state import new_state
    from mmaudio.finetune.summary import saved_bytes

    sizes = []
    for checkpointing in (False, True):
        config, network = small_world.config(tmp_path, gradient_checkpointing=checkpointing), mini()
        state = new_state(network, config, 2)
        sizes.append(saved_bytes(state, material(network, small_world.clips(2), torch.device("cpu")), config, 1))
    assert 0 < 2 * sizes[1] < sizes[0]
