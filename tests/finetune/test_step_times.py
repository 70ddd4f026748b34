"""`compile=null`: the measured times of steps are kept, and decide whether blocks are compiled."""

import json

import mini_training
import pytest
import torch

from mmaudio.config import TrainConfig
from mmaudio.finetune import step_times, trainer
from mmaudio.finetune.checkpoint import Checkpoints
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.step_times import StepTimes
from mmaudio.lora.config import LoRAConfig


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setattr(step_times, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "step_times.json"


def key(seconds=8.0, resident=True, **settings):
    return step_times.key(TrainConfig(**settings), seconds, resident, Distributed())


def test_the_first_steps_are_the_start_and_the_median_of_the_others_a_step():
    assert step_times.measure([31, 2, 1, 1, 1, *[1] * 10, *[2] * 3, *[1] * 7]) == StepTimes(step=1, start=31)
    assert step_times.measure([1] * 24) is None
    assert step_times.measure([1] * 25) == StepTimes(step=1, start=0)


def test_times_are_kept_by_settings_and_mode(cache):
    compiled, eager = StepTimes(0.5, 40), StepTimes(1, 2)
    step_times.keep("a", True, StepTimes(7, 7))
    step_times.keep("a", True, compiled)
    step_times.keep("a", False, eager)
    assert (step_times.find("a", True), step_times.find("a", False)) == (compiled, eager)
    assert step_times.find("b", True) is None
    step_times.keep("b", False, eager)
    assert step_times.find("b", True) is None and step_times.find("a", True) == compiled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a": 1}',
        '{"a": {"eager": 1}}',
        '{"a": {"eager": {"step": 1}}}',
        '{"a": {"eager": {"step": 1, "start": null}, "compiled": {"step": 1, "start": NaN}}}',
    ],
)
def test_a_damaged_entry_is_as_none(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert step_times.find("a", False) is None and not step_times.explain_gain("a", 10**6)
    step_times.keep("a", False, StepTimes(1, 2))
    assert step_times.find("a", False) == StepTimes(1, 2) and step_times.find("a", True) is None


def test_the_oldest_settings_are_dropped(cache):
    for number in range(step_times.MAX_ENTRIES + 2):
        step_times.keep(str(number), False, StepTimes(number, 0))
        step_times.keep("used again", False, StepTimes(number, 0))
    names = list(json.loads(cache.read_text()))
    assert len(names) == step_times.MAX_ENTRIES
    assert names[-1] == "used again" and names[0] == "3"


def test_a_cache_that_cannot_be_written_changes_nothing(cache):
    cache.parent.write_text("a file")
    step_times.keep("a", False, StepTimes(1, 2))
    assert step_times.find("a", False) is None


def test_times_hold_for_settings_that_change_a_step():
    same = [key(learning_rate=1e-3), key(max_steps=7), key(exp_id="other"), key(compile=True), key(seed=3)]
    assert set(same) == {key()}
    assert key(resident=False) not in (key(), key(features_in_memory=False)) and key(optimizer="prodigy") != key()
    others = [key(2.0), key(batch_size=4), key(lora=LoRAConfig(rank=4)), key(amp=False), key(preserve_base=1.0)]
    assert len({key(), *others}) == 6


def test_compiling_repays_where_the_steps_to_come_save_more_than_its_start(cache):
    assert not step_times.explain_gain("a", 1000), "nothing is known"
    step_times.keep("a", True, StepTimes(0.5, 50))
    assert not step_times.explain_gain("a", 1000), "the eager time is not known"
    step_times.keep("a", False, StepTimes(0.75, 10))
    assert not step_times.explain_gain("a", 160)
    assert step_times.explain_gain("a", 161) == (
        "blocks are compiled: 161 steps at 0.5 in place of 0.75 s repay 40 s at the start (compile=false: not)"
    )
    step_times.keep("a", False, StepTimes(0.5, 1))
    assert not step_times.explain_gain("a", 10**6), "no faster"


def is_compiled(folder):
    saved = torch.load(Checkpoints(folder / "exp").state, weights_only=True)
    return saved["state"]["compiled"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler emits warnings of its own
def test_a_run_is_compiled_where_that_is_known_to_repay_and_resumes_so(cache, tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(trainer, "compile_blocks", compiled.append)  # which takes minutes, and has tests of its own

    def compiles(folder, **settings):
        """Whether a run compiles its blocks, and its state says so."""
        compiled.clear()
        mini_training.train_mini(folder, **settings)
        assert is_compiled(folder) == bool(compiled)
        return bool(compiled)

    assert not compiles(tmp_path / "eager", max_steps=25)
    ((name, entry),) = json.loads(cache.read_text()).items()
    assert list(entry) == ["eager"] and entry["eager"]["step"] > 0
    assert not compiles(tmp_path / "unknown", max_steps=2)
    step_times.keep(name, True, StepTimes(0.0, 0.0))
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "can_compile", lambda network: False)
        assert not compiles(tmp_path / "no compiler", max_steps=2), "nobody asked for one"
    assert "blocks are compiled" not in capsys.readouterr().out
    assert compiles(tmp_path / "known", max_steps=2)
    assert "blocks are compiled: 2 steps at 0 in place of" in capsys.readouterr().out
    assert not compiles(tmp_path / "unknown", max_steps=3), "a resumed run stays eager"
    cache.unlink()
    assert compiles(tmp_path / "known", max_steps=3), "a resumed run stays compiled"
    assert not compiles(tmp_path / "known", max_steps=4, compile=False)
    assert compiles(tmp_path / "set", max_steps=25, compile=True)
    ((_, entry),) = json.loads(cache.read_text()).items()
    assert list(entry) == ["compiled"]
