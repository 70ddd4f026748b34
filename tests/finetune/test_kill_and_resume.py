"""Training killed by SIGKILL at several moments and resumed: bit for bit the uninterrupted run."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, TESTS

from mmaudio.lora.checkpoint import read_adapter

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
import peft, scipy.stats, torch._dynamo, torch.utils.tensorboard  # what training imports late: once, not in each child
import mini_training
from mmaudio.finetune.tracker import Tracker

torch.set_num_threads(1)
folder, settings = Path(sys.argv[1]), {"ema_decay": 0.9, "max_steps": 7}

def run_in_child(function):
    child = os.fork()
    if not child:
        function()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    # flushed, or the next child has a copy in its buffer and prints it as well
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)

def run_and_die(method, step):
    original = getattr(Tracker, method)
    def killing(self, state, *args):
        if state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, state, *args)
    setattr(Tracker, method, killing)
    mini_training.train_mini(folder / "killed", **settings)

run_in_child(lambda: mini_training.train_mini(folder / "whole", **settings))
for name in sys.argv[2:]:
    method, step = name.split("-")
    run_in_child(lambda: run_and_die(method, int(step)))
run_in_child(lambda: mini_training.train_mini(folder / "killed", **settings))
"""
MOMENTS = ("log_step-1", "log_step-2", "log_evaluation-4", "log_step-5", "log_step-7")
"""A call of the tracker and its step: before the first save, before an evaluation, in one, after a save, at the end.
One run is killed at each in turn. Five clips in batches of four: every step but the first is in a new epoch."""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{ROOT}"}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *MOMENTS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    statuses = [line for line in process.stdout.splitlines() if line.isdecimal()]
    assert statuses == ["0", *["9"] * len(MOMENTS), "0"], process.stderr
    for name in ("last_lora.pt", "best_lora.pt", "average_lora.pt"):
        whole, killed = (
            read_adapter(tmp_path / run / "exp" / "lora_checkpoints" / name) for run in ("whole", "killed")
        )
        assert killed.step == whole.step == 7, name
        assert all(torch.equal(value, whole.state[key]) for key, value in killed.state.items()), name
