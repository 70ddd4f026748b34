"""Training runs of the mini network: learning, resuming bit for bit, stopping, refusing."""

import dataclasses
import errno
import json
import os
import shutil
import signal

import mini_training
import pytest
import torch
from helpers import mini

from mmaudio.config import LoggingConfig
from mmaudio.errors import MMAudioError, TrainingError
from mmaudio.finetune import checkpoint, loop, trainer
from mmaudio.finetune.run_inputs import RunInputs
from mmaudio.finetune.state import new_state
from mmaudio.finetune.tracker import Tracker
from mmaudio.lora.adapter import LoRAConfig
from mmaudio.lora.checkpoint import read_adapter, shared_metadata


class Killed(BaseException):
    """Stands for a SIGKILL: nothing below catches it."""


def weights(outcome, name="last_lora.pt"):
    return read_adapter(outcome.folder / "lora_checkpoints" / name)


def same(one, other):
    return one.step == other.step and all(torch.equal(one.state[key], other.state[key]) for key in one.state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption."""
    return mini_training.train_mini(tmp_path_factory.mktemp("whole"), ema_decay=0.9)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run of two steps."""
    return mini_training.train_mini(tmp_path_factory.mktemp("two-steps"), max_steps=2)


@pytest.mark.slow
def test_a_run_learns_and_writes_its_files(whole):
    assert (whole.step, whole.reason, whole.new_steps) == (6, "max_steps", 6)
    assert whole.best_loss < 0.98 * whole.base_loss and whole.best_step > 0
    files = {path.name for path in (whole.folder / "lora_checkpoints").iterdir()}
    adapters = {f"{name}_lora{end}" for name in ("best", "last", "average") for end in ("", ".pt")}
    assert files == adapters | {"state.pt", "state.previous.pt", "exp_lora.safetensors"}
    best, single = weights(whole, "best_lora.pt"), weights(whole, "exp_lora.safetensors")
    assert same(best, single) and single.metadata() == shared_metadata(best) != best.metadata()
    assert best.step == whole.best_step and best.base_model == "tiny_16k" and best.base_sha256 == "0" * 64
    assert best.data["train"]["ids"] == mini_training.mini_clips(5).ids and best.config["lora"]["rank"] == 4
    assert not {"output_dir", "clips_tsv", "features_dir"} & set(best.config), "places stay private"
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = {row["step"]: row for row in rows if "validation/loss" in row}
    assert list(evaluated) == [0, 2, 4, 6]
    assert all(row["validation_clips"].keys() == {"val0", "val1", "val2"} for row in evaluated.values())
    last = evaluated[6]
    assert last["validation/change_low"] < last["validation/change"] < last["validation/change_high"]
    assert last["validation/change"] == pytest.approx(last["validation/loss"] - evaluated[0]["validation/loss"])
    assert [step for step, row in evaluated.items() if "validation/loss_of_average" in row] == [4, 6]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]


def raise_at(monkeypatch, target, count):
    """Make call number `count` of `target` (owner, name) raise Killed instead."""
    owner, name = target
    original, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "target, count",
    [
        ((loop, "train_step"), 1),
        ((loop, "train_step"), 4),
        ((loop, "validate"), 3),
        ((checkpoint.Checkpoints, "save"), 2),
        ((checkpoint, "write_synced"), 3),
        ((Tracker, "log_step"), 6),
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
def test_a_killed_run_resumes_bit_for_bit(whole, tmp_path, monkeypatch, target, count):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        raise_at(patched, target, count)
        mini_training.train_mini(tmp_path, ema_decay=0.9)
    outcome = mini_training.train_mini(tmp_path, ema_decay=0.9)
    assert outcome.step == 6 and outcome.best_loss == whole.best_loss
    for name in ("last_lora.pt", "best_lora.pt", "average_lora.pt"):
        assert same(weights(outcome, name), weights(whole, name)), name
    steps = [json.loads(line)["step"] for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and len(steps) == 10, "no step is reported twice"


@pytest.mark.slow
def test_the_best_adapter_may_be_the_ema(tmp_path, capsys, monkeypatch):
    original = loop.train_step

    def step_and_disturb(state, *args):
        metrics = original(state, *args)
        if state.step == 6:
            for weight in state.trainable_parameters().values():
                weight.data *= 20
        return metrics

    monkeypatch.setattr(loop, "train_step", step_and_disturb)
    outcome = mini_training.train_mini(tmp_path, ema_decay=0.9, learning_rate=3e-2)
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    raw, average = next(
        (row["validation/loss"], row["validation/loss_of_average"]) for row in rows[::-1] if row["step"] == 6
    )
    assert average == outcome.best_loss < raw and outcome.best_step == 6
    assert same(weights(outcome, "best_lora.pt"), weights(outcome, "average_lora.pt"))
    assert not same(weights(outcome), weights(outcome, "average_lora.pt"))
    assert "; EMA " in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_stays_where_later_ones_are_worse(tmp_path, monkeypatch):
    settings = {"ema_decay": 0.0, "schedule": "constant"}
    four = mini_training.train_mini(tmp_path / "four", max_steps=4, **settings)
    original = loop.train_step

    def step_and_disturb(state, *args):
        metrics = original(state, *args)
        if state.step > 4:
            for weight in state.trainable_parameters().values():
                weight.data *= 20
        return metrics

    monkeypatch.setattr(loop, "train_step", step_and_disturb)
    outcome = mini_training.train_mini(tmp_path / "six", **settings)
    assert (outcome.step, outcome.best_step, outcome.best_loss) == (6, 4, four.best_loss)
    assert same(weights(outcome, "best_lora.pt"), weights(four)) and weights(outcome).step == 6


@pytest.mark.slow
def test_the_previous_state_is_preserved_and_resumes(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "exp")
    files = checkpoint.Checkpoints(tmp_path / "exp")
    files.previous.replace(files.state)
    resumed = mini_training.train_mini(tmp_path, ema_decay=0.9)
    assert resumed.new_steps == 2 and same(weights(resumed), weights(whole))


@pytest.mark.slow
def test_the_previous_state_is_preserved_where_files_cannot_be_linked(whole, tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what Linux says on FAT

    monkeypatch.setattr(os, "link", refuse)
    files = checkpoint.Checkpoints(mini_training.train_mini(tmp_path, ema_decay=0.9).folder)
    files.previous.replace(files.state)
    resumed = mini_training.train_mini(tmp_path, ema_decay=0.9)
    assert resumed.new_steps == 2 and same(weights(resumed), weights(whole))


@pytest.mark.slow
def test_samples_are_logged_when_they_are_due(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "build_sample_generator", lambda *args: None)  # the miniature has no decoder
    sampled_steps = []
    monkeypatch.setattr(Tracker, "log_samples", lambda self, state: sampled_steps.append(state.step))
    mini_training.train_mini(tmp_path, logging=LoggingConfig(log_every=1, sample_every=2), max_steps=5)
    assert sampled_steps == [2, 4, 5]


@pytest.mark.slow
def test_a_non_finite_step_keeps_the_last_good_state(whole, tmp_path, monkeypatch):
    original = loop.train_step

    def poisoned(state, clips, config, *args):
        if state.step == 3:
            clips = dataclasses.replace(clips, mean=torch.full_like(clips.mean, float("nan")))
        return original(state, clips, config, *args)

    with monkeypatch.context() as patched, pytest.raises(TrainingError, match=r"step 4: loss nan.*amp=false"):
        patched.setattr(loop, "train_step", poisoned)
        mini_training.train_mini(tmp_path, ema_decay=0.9)
    saved = read_adapter(tmp_path / "exp" / "lora_checkpoints" / "last_lora.pt")
    assert saved.step == 3 and all(value.isfinite().all() for value in saved.state.values())
    resumed = mini_training.train_mini(tmp_path, ema_decay=0.9)
    assert resumed.new_steps == 3 and same(weights(resumed), weights(whole)), (
        "the good data continues as if nothing had been"
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_stops(whole, tmp_path, monkeypatch, number):
    original = Tracker.log_step

    def interrupted(self, state, metrics):
        original(self, state, metrics)
        if state.step == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "log_step", interrupted)
        outcome = mini_training.train_mini(tmp_path, ema_decay=0.9)
    assert (outcome.reason, outcome.step, outcome.signal) == ("interrupted", 3, number)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = mini_training.train_mini(tmp_path, ema_decay=0.9)
    assert resumed.new_steps == 3 and same(weights(resumed), weights(whole))


@pytest.mark.slow
def test_an_existing_handler_gets_the_signal_after_saving(whole, tmp_path, monkeypatch):
    files, original, saved = checkpoint.Checkpoints(tmp_path / "exp"), Tracker.log_step, []

    def queue_again(number, frame):
        saved.append(torch.load(files.state, weights_only=True)["state"]["step"])
        raise SystemExit

    def interrupted(self, state, metrics):
        original(self, state, metrics)
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(Tracker, "log_step", interrupted)
            mini_training.train_mini(tmp_path, ema_decay=0.9)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert saved == [3]
    resumed = mini_training.train_mini(tmp_path, ema_decay=0.9)
    assert resumed.new_steps == 3 and same(weights(resumed), weights(whole))


@pytest.mark.slow
def test_a_finished_run_is_not_redone(tmp_path, capsys):
    outcome = mini_training.train_mini(tmp_path, max_steps=2)
    before = {path: path.stat().st_mtime_ns for path in outcome.folder.rglob("*")}
    capsys.readouterr()
    again = mini_training.train_mini(tmp_path, max_steps=2)
    assert again.new_steps == 0 and "nothing to do" in (output := capsys.readouterr().out)
    assert "a higher max_steps would continue it" in output
    assert before == {path: path.stat().st_mtime_ns for path in outcome.folder.rglob("*")}
    assert mini_training.train_mini(tmp_path, max_steps=4).new_steps == 2


@pytest.mark.slow
def test_changed_settings_are_refused_with_the_differences(tmp_path):
    mini_training.train_mini(tmp_path, max_steps=2)
    with pytest.raises(TrainingError, match=r"learning_rate: 0.01, now 0.02.*resume=false .*--from train"):
        mini_training.train_mini(tmp_path, learning_rate=0.02)
    with pytest.raises(TrainingError, match=r"lora.rank: 4, now 8"):
        mini_training.train_mini(tmp_path, lora=LoRAConfig(rank=8, alpha=8.0))
    with pytest.raises(TrainingError, match=r"training clips: 5.*; videos, captions or how they are cut have changed"):
        mini_training.train_mini(tmp_path, train=mini_training.mini_clips(4))
    smaller = mini_training.train_mini(tmp_path, max_steps=3, batch_size=2, gradient_accumulation_steps=2)
    assert smaller.new_steps == 1, "smaller pieces of the same step continue"
    anew = mini_training.train_mini(tmp_path, max_steps=2, learning_rate=0.02, resume=False)
    assert anew.folder.name == "exp-2" and (tmp_path / "exp" / "lora_checkpoints" / "state.pt").exists()


@pytest.mark.slow
def test_starting_over_overwrites_nothing(tmp_path):
    earlier = tmp_path / "exp" / "lora_checkpoints" / "best_lora.pt"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"an earlier adapter")
    outcome = mini_training.train_mini(tmp_path, max_steps=1, resume=False)
    assert outcome.folder.name == "exp-2" and earlier.read_bytes() == b"an earlier adapter"


@pytest.mark.slow
def test_early_stopping_ends_the_run_and_a_larger_patience_resumes_it(tmp_path, capsys):
    settings = mini_training.build_config(tmp_path).early_stopping
    settings.patience, settings.min_delta = 2, 1e9
    outcome = mini_training.train_mini(tmp_path, early_stopping=settings)
    assert (outcome.reason, outcome.step) == ("early stopping", 4)
    assert mini_training.train_mini(tmp_path, early_stopping=settings, max_steps=8).new_steps == 0
    assert "a higher early_stopping.patience would continue it" in capsys.readouterr().out
    settings.patience = 3
    assert mini_training.train_mini(tmp_path, early_stopping=settings, max_steps=8).new_steps == 2
    settings.enabled = False
    resumed = mini_training.train_mini(tmp_path, early_stopping=settings, max_steps=8)
    assert (resumed.reason, resumed.new_steps) == ("max_steps", 2)


@pytest.mark.slow
def test_without_validation_the_last_is_the_best(tmp_path):
    outcome = mini_training.train_mini(tmp_path, held_out=None, max_steps=2)
    assert same(weights(outcome), weights(outcome, "best_lora.pt")) and outcome.best_step == -1


def test_a_state_that_is_truncated_or_none_is_an_error(two_steps, tmp_path):
    path = shutil.copytree(two_steps.folder, tmp_path / "exp") / "lora_checkpoints" / "state.pt"
    for content in (path.read_bytes()[:1000], b"hello\n"):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match=r"state\.pt cannot be read.*state\.previous\.pt"):
            mini_training.train_mini(tmp_path)


def alike(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.slow
def test_no_flipped_bit_of_a_state_goes_unnoticed(two_steps, tmp_path):
    path = shutil.copytree(two_steps.folder, tmp_path / "exp") / "lora_checkpoints" / "state.pt"
    whole, refused = path.read_bytes(), 0
    saved = torch.load(path, weights_only=True)
    config, clips = mini_training.build_config(tmp_path, max_steps=2), mini_training.mini_clips(5)
    inputs = RunInputs(config, "0" * 64, clips, mini_training.mini_clips(3, "val", seed=1))
    state = new_state(mini(), config, 5)
    for offset in range(0, len(whole), len(whole) // 97):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 8]) + whole[offset + 1 :])
        try:
            checkpoint.Checkpoints(tmp_path / "exp").load(state, inputs)
        except TrainingError as error:
            assert "state.pt cannot be read" in str(error)
            refused += 1
        else:  # a byte that only pads
            assert alike(torch.load(path, weights_only=True), saved)
    assert refused > 80


@pytest.mark.parametrize("content", [[1], None, {"format": 2}, {"format": 1, "origin": {}, "state": {}}], ids=str)
def test_a_file_that_is_no_state_is_an_error(two_steps, tmp_path, content):
    folder = shutil.copytree(two_steps.folder, tmp_path / "exp")
    torch.save(content, folder / "lora_checkpoints" / "state.pt")
    with pytest.raises(TrainingError, match=r"state\.pt is no training state, or one of another version"):
        mini_training.train_mini(tmp_path)


@pytest.mark.slow
def test_a_missing_state_beside_a_previous_one_is_an_error(tmp_path):
    outcome = mini_training.train_mini(tmp_path, max_steps=4)
    adapter = (outcome.folder / "lora_checkpoints" / "best_lora.pt").read_bytes()
    (outcome.folder / "lora_checkpoints" / "state.pt").unlink()
    with pytest.raises(TrainingError, match=r"state\.pt is gone, state\.previous\.pt is there"):
        mini_training.train_mini(tmp_path, max_steps=4)
    assert mini_training.train_mini(tmp_path, max_steps=2, resume=False).folder.name == "exp-2"
    assert (outcome.folder / "lora_checkpoints" / "best_lora.pt").read_bytes() == adapter


@pytest.mark.slow
@pytest.mark.parametrize(("content", "message"), [(None, "is gone"), (b"PK\x03\x04", "cannot be read as an adapter")])
def test_a_finished_run_without_its_adapter_is_an_error(tmp_path, content, message):
    outcome = mini_training.train_mini(tmp_path, max_steps=2)
    path = outcome.folder / "lora_checkpoints" / "best_lora.pt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=rf"best_lora\.pt:? {message}.*resume=false"):
        mini_training.train_mini(tmp_path, max_steps=2)


@pytest.mark.slow
def test_the_folders_of_a_finished_run_are_written_again(tmp_path, capsys):
    folder = mini_training.train_mini(tmp_path, max_steps=2, ema_decay=0.9).folder / "lora_checkpoints"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in ("best_lora", "last_lora", "average_lora"):
        shutil.rmtree(folder / name)
    (folder / "exp_lora.safetensors").unlink()
    mini_training.train_mini(tmp_path, max_steps=2, ema_decay=0.9)
    assert capsys.readouterr().out.count("was gone or damaged, and is written again") == 3
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_an_unwritable_file_is_named(tmp_path):
    (tmp_path / "exp" / "lora_checkpoints" / "best_lora.pt").mkdir(parents=True)
    with pytest.raises(MMAudioError, match=r"lora_checkpoints/best_lora\.pt: cannot be written \(Is a directory\)"):
        mini_training.train_mini(tmp_path, max_steps=2)
