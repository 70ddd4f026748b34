"""Training runs on the miniature: learning, resuming bit for bit, stopping, refusing."""

import dataclasses
import errno
import json
import os
import shutil
import signal

import pytest
import small_world
import torch
from test_networks import mini

from mmaudio.config import LoggingConfig
from mmaudio.errors import MMAudioError, TrainingError
from mmaudio.finetune import checkpoint, loop
from mmaudio.finetune import trainer as run
from mmaudio.finetune.early_stopping import change
from mmaudio.finetune.tracker import Tracker
from mmaudio.lora.adapter import LoRAConfig, add_lora, parameter_counts
from mmaudio.lora.checkpoint import read_adapter


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


@pytest.mark.slow
def test_it_learns_and_writes_what_it_should(whole):
    assert (whole.step, whole.reason, whole.new_steps) == (6, "max_steps", 6)
    assert whole.best < 0.98 * whole.base and whole.best_step > 0
    files = {path.name for path in (whole.folder / "lora_checkpoints").iterdir()}
    adapters = {f"{name}_lora{end}" for name in ("best", "last", "average") for end in ("", ".pt")}
    assert files == adapters | {"state.pt", "state.previous.pt"}
    best = weights(whole, "best_lora.pt")
    assert best.step == whole.best_step and best.base_model == "tiny_16k" and best.base_sha256 == "0" * 64
    assert best.data["train"]["ids"] == small_world.clips(5).ids and best.config["lora"]["rank"] == 4
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


@pytest.mark.slow
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
    for name in ("last_lora.pt", "best_lora.pt", "average_lora.pt"):
        assert same(weights(outcome, name), weights(whole, name)), name
    steps = [json.loads(line)["step"] for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and len(steps) == 10, "no step is reported twice"


@pytest.mark.slow
def test_the_best_may_be_the_running_average(tmp_path, capsys, monkeypatch):
    original = loop.train_step

    def thrown_off(state, *rest):
        metrics = original(state, *rest)
        if state.step == 6:
            for weight in state.trained().values():
                weight.data *= 20
        return metrics

    monkeypatch.setattr(loop, "train_step", thrown_off)
    outcome = small_world.run(tmp_path, ema_decay=0.9, learning_rate=3e-2)
    rows = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    raw, average = next(
        (row["validation/loss"], row["validation/loss_of_average"]) for row in rows[::-1] if row["step"] == 6
    )
    assert average == outcome.best < raw and outcome.best_step == 6
    assert same(weights(outcome, "best_lora.pt"), weights(outcome, "average_lora.pt"))
    assert not same(weights(outcome), weights(outcome, "average_lora.pt"))
    assert "running average" in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_stays_where_later_ones_are_worse(tmp_path, monkeypatch):
    settings = {"ema_decay": 0.0, "schedule": "constant"}
    four = small_world.run(tmp_path / "four", max_steps=4, **settings)
    original = loop.train_step

    def thrown_off(state, *rest):
        metrics = original(state, *rest)
        if state.step > 4:
            for weight in state.trained().values():
                weight.data *= 20
        return metrics

    monkeypatch.setattr(loop, "train_step", thrown_off)
    outcome = small_world.run(tmp_path / "six", **settings)
    assert (outcome.step, outcome.best_step, outcome.best) == (6, 4, four.best)
    assert same(weights(outcome, "best_lora.pt"), weights(four)) and weights(outcome).step == 6


@pytest.mark.slow
def test_the_state_before_the_last_is_kept_and_continues(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "exp")
    files = checkpoint.Checkpoints(tmp_path / "exp")
    files.previous.replace(files.state)
    rest = small_world.run(tmp_path, ema_decay=0.9)
    assert rest.new_steps == 2 and same(weights(rest), weights(whole))


@pytest.mark.slow
def test_the_state_before_the_last_is_kept_where_files_cannot_be_linked(whole, tmp_path, monkeypatch):
    def refused(*given):
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what Linux says on FAT

    monkeypatch.setattr(os, "link", refused)
    files = checkpoint.Checkpoints(small_world.run(tmp_path, ema_decay=0.9).folder)
    files.previous.replace(files.state)
    rest = small_world.run(tmp_path, ema_decay=0.9)
    assert rest.new_steps == 2 and same(weights(rest), weights(whole))


@pytest.mark.slow
def test_samples_are_drawn_when_they_are_due(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "samples", lambda *given: None)  # the miniature has no decoder
    seen = []
    monkeypatch.setattr(Tracker, "sample", lambda self, state: seen.append(state.step))
    small_world.run(tmp_path, logging=LoggingConfig(log_every=1, sample_every=2), max_steps=5)
    assert seen == [2, 4, 5]


@pytest.mark.slow
def test_what_is_not_finite_keeps_the_last_good_state(whole, tmp_path, monkeypatch):
    original = loop.train_step

    def poisoned(state, clips, config, *rest):
        if state.step == 3:
            clips = dataclasses.replace(clips, mean=torch.full_like(clips.mean, float("nan")))
        return original(state, clips, config, *rest)

    with monkeypatch.context() as patched, pytest.raises(TrainingError, match=r"step 4: loss nan.*amp=false"):
        patched.setattr(loop, "train_step", poisoned)
        small_world.run(tmp_path, ema_decay=0.9)
    saved = read_adapter(tmp_path / "exp" / "lora_checkpoints" / "last_lora.pt")
    assert saved.step == 3 and all(value.isfinite().all() for value in saved.state.values())
    rest = small_world.run(tmp_path, ema_decay=0.9)
    assert rest.new_steps == 3 and same(weights(rest), weights(whole)), "the good data continues as if nothing had been"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
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


@pytest.mark.slow
def test_a_handler_that_was_there_gets_the_signal_once_all_is_saved(whole, tmp_path, monkeypatch):
    files, original, saved = checkpoint.Checkpoints(tmp_path / "exp"), Tracker.stepped, []

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
            patched.setattr(Tracker, "stepped", interrupted)
            small_world.run(tmp_path, ema_decay=0.9)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert saved == [3]
    rest = small_world.run(tmp_path, ema_decay=0.9)
    assert rest.new_steps == 3 and same(weights(rest), weights(whole))


@pytest.mark.slow
def test_a_finished_run_is_not_redone(tmp_path, capsys):
    outcome = small_world.run(tmp_path, max_steps=2)
    before = {path: path.stat().st_mtime_ns for path in outcome.folder.rglob("*")}
    capsys.readouterr()
    again = small_world.run(tmp_path, max_steps=2)
    assert again.new_steps == 0 and "nothing to do" in (said := capsys.readouterr().out)
    assert "a higher max_steps would continue it" in said
    assert before == {path: path.stat().st_mtime_ns for path in outcome.folder.rglob("*")}
    assert small_world.run(tmp_path, max_steps=4).new_steps == 2


@pytest.mark.slow
def test_changed_settings_are_refused_with_the_differences(tmp_path):
    small_world.run(tmp_path, max_steps=2)
    with pytest.raises(TrainingError, match=r"learning_rate: 0.01, now 0.02.*resume=false .*--from train"):
        small_world.run(tmp_path, learning_rate=0.02)
    with pytest.raises(TrainingError, match=r"lora.rank: 4, now 8"):
        small_world.run(tmp_path, lora=LoRAConfig(rank=8, alpha=8.0))
    with pytest.raises(TrainingError, match=r"training clips: 5.*; videos, captions or how they are cut have changed"):
        small_world.run(tmp_path, train=small_world.clips(4))
    smaller = small_world.run(tmp_path, max_steps=3, batch_size=2, gradient_accumulation_steps=2)
    assert smaller.new_steps == 1, "smaller pieces of the same step continue"
    anew = small_world.run(tmp_path, max_steps=2, learning_rate=0.02, resume=False)
    assert anew.folder.name == "exp-2" and (tmp_path / "exp" / "lora_checkpoints" / "state.pt").exists()


def test_starting_over_writes_over_nothing(tmp_path):
    kept = tmp_path / "exp" / "lora_checkpoints" / "best_lora.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"all that was kept of an old run")
    outcome = small_world.run(tmp_path, max_steps=1, resume=False)
    assert outcome.folder.name == "exp-2" and kept.read_bytes() == b"all that was kept of an old run"


@pytest.mark.slow
def test_early_stopping(tmp_path, capsys):
    settings = small_world.config(tmp_path).early_stopping
    settings.patience, settings.min_delta = 2, 1e9
    outcome = small_world.run(tmp_path, early_stopping=settings)
    assert (outcome.reason, outcome.step) == ("early stopping", 4)
    assert small_world.run(tmp_path, early_stopping=settings, max_steps=8).new_steps == 0
    assert "a higher early_stopping.patience would continue it" in capsys.readouterr().out
    settings.patience = 3
    assert small_world.run(tmp_path, early_stopping=settings, max_steps=8).new_steps == 2
    settings.enabled = False
    rest = small_world.run(tmp_path, early_stopping=settings, max_steps=8)
    assert (rest.reason, rest.new_steps) == ("max_steps", 2)


def test_without_validation_the_last_is_the_best(tmp_path):
    outcome = small_world.run(tmp_path, held=None, max_steps=2)
    assert same(weights(outcome), weights(outcome, "best_lora.pt")) and outcome.best_step == -1


def test_a_state_cut_off_is_named(tmp_path):
    outcome = small_world.run(tmp_path, max_steps=2)
    path = outcome.folder / "lora_checkpoints" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"state\.pt cannot be read.*state\.previous\.pt"):
        small_world.run(tmp_path)


def alike(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.slow
def test_no_flipped_bit_of_a_state_goes_unnoticed(tmp_path):
    path = small_world.run(tmp_path, max_steps=2).folder / "lora_checkpoints" / "state.pt"
    whole, refused = path.read_bytes(), 0
    kept = torch.load(path, weights_only=True)
    for place in range(0, len(whole), len(whole) // 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        try:
            small_world.run(tmp_path, max_steps=2)
        except TrainingError as error:
            assert "state.pt cannot be read" in str(error)
            refused += 1
        else:  # a byte that only pads
            assert alike(torch.load(path, weights_only=True), kept)
    assert refused > 80


@pytest.mark.parametrize("content", [[1], None, {"format": 2}, {"format": 1, "origin": {}, "state": {}}], ids=str)
def test_a_state_of_something_else_is_named(tmp_path, content):
    torch.save(content, small_world.run(tmp_path, max_steps=2).folder / "lora_checkpoints" / "state.pt")
    with pytest.raises(TrainingError, match=r"state\.pt is no state of training, or of another version"):
        small_world.run(tmp_path)


@pytest.mark.slow
def test_a_state_that_is_gone_while_the_one_before_is_there_starts_nothing_over_it(tmp_path):
    outcome = small_world.run(tmp_path, max_steps=4)
    adapter = (outcome.folder / "lora_checkpoints" / "best_lora.pt").read_bytes()
    (outcome.folder / "lora_checkpoints" / "state.pt").unlink()
    with pytest.raises(TrainingError, match=r"state\.pt is gone, state\.previous\.pt is there"):
        small_world.run(tmp_path, max_steps=4)
    assert small_world.run(tmp_path, max_steps=2, resume=False).folder.name == "exp-2"
    assert (outcome.folder / "lora_checkpoints" / "best_lora.pt").read_bytes() == adapter


@pytest.mark.slow
@pytest.mark.parametrize(("content", "said"), [(None, "is gone"), (b"PK\x03\x04", "cannot be read as an adapter")])
def test_a_finished_run_without_its_adapter_says_so(tmp_path, content, said):
    outcome = small_world.run(tmp_path, max_steps=2)
    path = outcome.folder / "lora_checkpoints" / "best_lora.pt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=rf"best_lora\.pt:? {said}.*resume=false"):
        small_world.run(tmp_path, max_steps=2)


def test_where_nothing_can_be_written_the_file_is_named(tmp_path):
    (tmp_path / "exp" / "lora_checkpoints" / "best_lora.pt").mkdir(parents=True)
    with pytest.raises(MMAudioError, match=r"lora_checkpoints/best_lora\.pt: cannot be written \(Is a directory\)"):
        small_world.run(tmp_path, max_steps=2)


def test_a_gain_is_said_with_what_chose_it():
    videos = ["a", "b", "c"]
    assert (
        run.judged(change([1.0, 2.0, 3.0], [0.5, 1.5, 2.5], videos)) == "better, on the clips that also chose this step"
    )
    assert run.judged(change([1.0, 2.0, 3.0], [0.5, 2.5, 2.5], videos)) == "cannot tell"


def test_what_is_said_at_the_start(tmp_path, capsys):
    small_world.run(tmp_path, max_steps=1)
    said = capsys.readouterr().out
    counts = parameter_counts(add_lora(mini(), small_world.config(tmp_path).lora))
    for expected in (
        f"parameters: {counts.total / 1e6:.2f} M in all, {counts.trainable / 1e6:.2f} M trained",
        *(f"{name} {count / 1e6:.2f} M" for name, count in counts.blocks.items()),
        "training:   5 clips of 3 videos, 0.01 h; a step takes 4 clips",
        "validation: 3 clips of 3 videos, 0.01 h, 8 flow times each",
        "rank 4, alpha 8",
        "2 x fused_blocks[*].attn.qkv",
        "6 x joint_blocks[*].latent_block.ffn",
        "3 x joint_blocks[*].clip_block.ffn",
        "memory:     about",
        "validation loss",
    ):
        assert expected in said, said


def test_checkpointing_shows_in_the_memory_estimate(tmp_path):
    from mmaudio.finetune.dataset import material
    from mmaudio.finetune.run_summary import saved_bytes
    from mmaudio.finetune.state import new_state

    sizes = []
    for checkpointing in (False, True):
        config, network = small_world.config(tmp_path, gradient_checkpointing=checkpointing), mini()
        state = new_state(network, config, 2)
        sizes.append(saved_bytes(state, material(network, small_world.clips(2), torch.device("cpu")), config, 1))
    assert 0 < 2 * sizes[1] < sizes[0]


def test_a_batch_that_memory_cannot_hold_is_said_at_the_start(tmp_path):
    from mmaudio.finetune.dataset import material
    from mmaudio.finetune.run_summary import memory_line
    from mmaudio.finetune.state import new_state

    said = []
    for size in (2, 10**8):
        config, network = small_world.config(tmp_path, batch_size=size), mini()
        state = new_state(network, config, 2)
        said.append(memory_line(state, material(network, small_world.clips(2), torch.device("cpu")), None, config))
    assert "are free" not in said[0] and said[1].endswith("lower batch_size and raise gradient_accumulation_steps")


def test_the_estimate_of_memory_counts_the_bases_own_weights_where_all_are_trained(tmp_path):
    from benchmarks.generation import random_network
    from benchmarks.training import random_features
    from mmaudio.finetune.dataset import material
    from mmaudio.finetune.run_summary import memory_line
    from mmaudio.finetune.state import new_state

    said, clips = [], random_features("tiny_16k", 1)  # 14 MB of weights
    for lora in (LoRAConfig(rank=4, alpha=8.0), LoRAConfig(enabled=False)):
        config, network = small_world.config(tmp_path, lora=lora), random_network("tiny_16k")
        state = new_state(network, config, 1)
        said.append(memory_line(state, material(network, clips, torch.device("cpu")), None, config))
    assert "(weights 0.01," in said[0] and "(weights 0.03," in said[1]
