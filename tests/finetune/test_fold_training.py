"""Training with folds on random features and random weights of tiny_16k: who is trained on what, and resuming."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import mini_training
import pytest
import torch
from helpers import ROOT, TESTS

from mmaudio.config import compose
from mmaudio.data.clips import Clip
from mmaudio.errors import ConfigError, TrainingError
from mmaudio.finetune.checkpoint import experiment_folder
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.fold_training import final_steps, train_with_folds
from mmaudio.finetune.tracker import Tracker
from mmaudio.lora.checkpoint import read_adapter

VIDEOS = [f"v{number}.mp4" for number in range(4)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """clips.tsv of four videos with a clip each, feature shards and a weights folder."""
    folder = tmp_path_factory.mktemp("data")
    rows = [Clip(f"{video}_0", video, 0.0, 8.0, "a sound", "train", -3.0, -20.0, 0.1) for video in VIDEOS]
    mini_training.write_training_data(folder, rows)
    return folder


def overrides(data, output, *more):
    settings = {
        "exp_id": "exp",
        "model": "tiny_16k",
        "clips_tsv": data / "clips.tsv",
        "features_dir": data / "features",
        "weights": data,
        "output_dir": output,
        "preset": "quick",
        "preserve_base": 0,
        "batch_size": 2,
        "max_steps": 2,
        "warmup_steps": 1,
        "eval_every": 1,
        "save_every": 1,
        "amp": "false",
        "ema_decay": 0,
        "logging.sample_every": 0,
        "lora.rank": 2,
        "device": "cpu",
        "folds": 3,
    }
    return [*(f"{name}={value}" for name, value in settings.items()), *more]


def train_here(data, output, *more):
    return train_with_folds(compose(overrides(data, output, *more)), torch.device("cpu"), Distributed())


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of results of a whole training with three folds."""
    output = tmp_path_factory.mktemp("trained")
    train_here(data, output)
    return output


def adapters_of(output):
    """Every adapter of the experiment by its path."""
    paths = sorted((output / "exp").rglob("*_lora.pt"))
    return {str(path.relative_to(output)): read_adapter(path) for path in paths}


def assert_same_adapters(output, other):
    one, two = adapters_of(output), adapters_of(other)
    assert one.keys() == two.keys() and len(one) == 4 * 2
    for name, adapter in one.items():
        assert adapter.step == two[name].step, name
        assert all(torch.equal(value, two[name].state[key]) for key, value in adapter.state.items()), name


@pytest.mark.slow
def test_each_fold_is_an_experiment_without_its_videos_and_the_adapter_has_all(trained):
    held_out = set()
    adapters = adapters_of(trained)
    for number in (1, 2, 3):
        adapter = adapters[f"exp/folds/{number}/lora_checkpoints/best_lora.pt"]
        used = {*adapter.data["train"]["videos"], *adapter.data["validation"]["videos"]}
        assert adapter.data["train"]["videos"] and adapter.data["validation"]["videos"]
        held_out |= set(VIDEOS) - used
        assert (trained / f"exp/folds/{number}/metrics.jsonl").is_file()
    assert held_out == set(VIDEOS)
    final = adapters["exp/lora_checkpoints/best_lora.pt"]
    assert (final.data["train"]["videos"], final.data["validation"]["videos"]) == (VIDEOS, [])
    folds = [adapters[f"exp/folds/{number}/lora_checkpoints/best_lora.pt"] for number in (1, 2, 3)]
    assert final.step == final_steps([a.step for a in folds], [a.data["train"]["clips"] for a in folds], 4)
    assert not final.config["early_stopping"]["enabled"]


def test_the_steps_are_the_median_in_proportion_to_the_clips():
    assert final_steps([100, 150, 400], [10, 10, 10], 15) == 225
    assert final_steps([100, 200], [20, 10], 20) == 250
    assert final_steps([0, 0, 50], [10, 10, 10], 15) == 1, "no fold learned"


@pytest.mark.slow
def test_a_finished_training_is_not_done_again(trained, data, capsys):
    times = {path: path.stat().st_mtime_ns for path in (trained / "exp").rglob("*.pt")}
    result = train_here(data, trained)
    assert result.new_steps == 0
    assert capsys.readouterr().out.count("nothing to do: this run finished") == 4
    assert {path: path.stat().st_mtime_ns for path in (trained / "exp").rglob("*.pt")} == times


@pytest.mark.slow
def test_a_fold_that_another_process_trains_is_left_to_it(trained, data, tmp_path, capsys):
    """The first fold is another process's, this one takes the others meanwhile and waits; all are the same as alone.

    It is a job of a sweep, as on a cluster: sweeps over folds have one experiment.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, str(ROOT / "train_lora.py"), "--multirun", *overrides(data, tmp_path, "fold=1")]
    other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (tmp_path / "exp/folds/1/config.yaml").is_file() and other.poll() is None:
        time.sleep(0.01)
    train_here(data, tmp_path)
    printed = other.communicate()[0]
    assert other.returncode == 0, printed
    assert "-- fold 1 of 3" in printed and "-- fold 2 of 3" not in printed
    assert_same_adapters(tmp_path, trained)


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import peft, scipy.stats, torch._dynamo, torch.utils.tensorboard  # what training imports late: once, not in each child
from test_fold_training import train_here
from mmaudio.finetune.tracker import Tracker

torch.set_num_threads(int(sys.argv[4]))
data, folder = Path(sys.argv[2]), Path(sys.argv[3])
original, calls = Tracker.log_step, 0
for limit in [2, 3, 4, None]:
    child = os.fork()
    if not child:
        def killing(self, state, *args):
            global calls
            calls += 1
            if calls == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, state, *args)
        Tracker.log_step = killing
        train_here(data, folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


@pytest.mark.slow
def test_killed_three_times_on_the_way_it_ends_with_the_same_adapters(trained, data, tmp_path):
    threads = str(torch.get_num_threads())  # the same bits need as many as there were in this process
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": f"{TESTS}:{ROOT}"}
    command = [sys.executable, "-c", SCRIPT, str(TESTS / "finetune"), str(data), str(tmp_path), threads]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    statuses = [line for line in result.stdout.splitlines() if line in ("killed", "0")]
    assert statuses == ["killed", "killed", "killed", "0"], result.stderr
    assert_same_adapters(tmp_path, trained)


@pytest.mark.slow
def test_a_signal_at_the_very_end_of_a_fold_lets_no_other_one_begin(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Tracker, "log_final", lambda *_: signal.raise_signal(signal.SIGTERM))
    result = train_here(data, tmp_path)
    assert (result.reason, result.signal) == ("max_steps", signal.SIGTERM)
    assert [path.parents[1].name for path in tmp_path.rglob("best_lora.pt")] == ["1"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("folds=5", "folds=5: there are 4 videos that can be used, and every fold holds out at least one"),
        ("fold=4", "fold=4: there are 3 folds with folds=3 here"),
        ("validation.enabled=false", "folds=3 with validation.enabled=false"),
        ("lora.phases=[{rank: 2, max_steps: 2}]", "folds=3 with lora.phases"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(data, tmp_path, setting, message):
    with pytest.raises(ConfigError) as error:
        train_here(data, tmp_path, setting)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_auto_takes_no_folds_on_a_cpu(data, tmp_path):
    result = train_here(data, tmp_path, "folds=auto", "validation.split_ratio=0.3")
    assert result.step == 2 and not (tmp_path / "exp" / "folds").exists()


def test_an_experiment_without_folds_is_refused_before_any_fold_is_trained(data, tmp_path):
    (tmp_path / "exp" / "lora_checkpoints").mkdir(parents=True)
    (tmp_path / "exp" / "lora_checkpoints" / "state.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"exp was trained without folds; .*--from train"):
        train_here(data, tmp_path)
    assert not (tmp_path / "exp" / "folds").exists()


def test_a_new_folder_is_taken_where_folds_have_begun(tmp_path):
    (tmp_path / "exp" / "folds").mkdir(parents=True)
    (tmp_path / "exp-2" / "lora_checkpoints").mkdir(parents=True)
    config = compose(["exp_id=exp", f"output_dir={tmp_path}"])
    assert [experiment_folder(replace(config, resume=resume)).name for resume in (True, False)] == ["exp", "exp-3"]
