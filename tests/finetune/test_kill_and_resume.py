"""Training that is killed for real, at several moments, and continued: bit for bit the run that was not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmaudio.lora.checkpoint import read_adapter

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
import small_world
from mmaudio.finetune.tracker import Tracker

torch.set_num_threads(1)
folder, settings = Path(sys.argv[1]), {"ema_decay": 0.9, "max_steps": 7}

def in_a_child(work):
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    # flushed, or the next child has a copy in its buffer and prints it as well
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)

def dying(place, method, step):
    original = getattr(Tracker, method)
    def killing(self, state, *rest):
        if state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, state, *rest)
    setattr(Tracker, method, killing)
    small_world.run(place, **settings)

in_a_child(lambda: small_world.run(folder / "whole", **settings))
for name in sys.argv[2:]:
    method, step = name.split("-")
    in_a_child(lambda: dying(folder / name, method, int(step)))
    in_a_child(lambda: small_world.run(folder / name, **settings))
"""
MOMENTS = ("stepped-1", "stepped-2", "evaluated-4", "stepped-5", "stepped-7")
"""A call of the tracker and its step: before the first save, before an evaluation, in one, after a save, at the end.
Five clips in batches of four: every step but the first is in a new epoch."""


@pytest.mark.slow
def test_killed_at_any_moment_and_continued_is_the_whole_run(tmp_path):
    tests = Path(__file__).parents[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{tests}:{tests}/model:{tests}/lora:{tests.parent}",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *MOMENTS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    statuses = [line for line in done.stdout.splitlines() if line.isdecimal()]
    assert statuses == ["0", *["9", "0"] * len(MOMENTS)], done.stderr
    for name in ("last_lora.pt", "best_lora.pt", "average_lora.pt"):
        whole = read_adapter(tmp_path / "whole" / "exp" / "lora_checkpoints" / name)
        for moment in MOMENTS:
            found = read_adapter(tmp_path / moment / "exp" / "lora_checkpoints" / name)
            assert found.step == whole.step, (moment, name)
            assert all(torch.equal(value, whole.state[key]) for key, value in found.state.items()), (moment, name)
