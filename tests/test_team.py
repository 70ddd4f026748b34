"""Several processes: the losses of one, and what happens to the others when one dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmaudio.errors import ConfigError
from mmaudio.finetune.team import Team

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
import torch.distributed as dist
import small_world
from mmaudio.errors import TrainingError
from mmaudio.finetune.team import Team
from mmaudio.finetune.tracking import Tracker
from mmaudio.model.lora import LoRAConfig

torch.set_num_threads(1)
folder = Path(sys.argv[1])
settings = {"lora": LoRAConfig(rank=4, alpha=8.0, dropout=0.0), "max_steps": 4}

def process(name, rank, size, dies):
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / name}.rendezvous", rank=rank, world_size=size)
    original = Tracker.stepped
    def stepped(self, state, metrics):
        if rank == dies and state.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, state, metrics)
    Tracker.stepped = stepped
    try:
        small_world.run(folder / name, team=Team(rank, size), **settings)
    except TrainingError as error:
        (folder / f"{name}.{rank}.error").write_text(str(error))

def start(name, size, dies=None):
    children = []
    for rank in range(size):
        children.append(os.fork())
        if not children[-1]:
            process(name, rank, size, dies)
            os._exit(0)
    return [os.waitpid(child, 0)[1] for child in children]

for size in (1, 2, 4):
    assert start(f"of-{size}", size) == [0] * size
assert start("dying", 4, dies=2) == [0, 0, 9, 0]
"""


def run_script(folder: Path) -> None:
    tests = Path(__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}:{tests.parent}"}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr


def curve(folder: Path, key: str) -> list[float]:
    lines = (folder / "exp" / "metrics.jsonl").read_text().splitlines()
    return [row[key] for row in map(json.loads, lines) if key in row]


@pytest.mark.slow
def test_one_two_and_four_processes_and_one_that_dies(tmp_path):
    run_script(tmp_path)
    for key in ("train/loss", "validation/loss", "train/grad_norm"):
        alone = curve(tmp_path / "of-1", key)
        assert len(alone) >= 3 and alone[0] != alone[-1]
        for size in (2, 4):
            assert curve(tmp_path / f"of-{size}", key) == pytest.approx(alone, rel=2e-3), (key, size)
    errors = {path.name: path.read_text() for path in tmp_path.glob("*.error")}
    assert set(errors) == {f"dying.{rank}.error" for rank in (0, 1, 3)}, "the survivors end, and say why"
    assert all("lost the others" in text and "The same command continues" in text for text in errors.values())
    assert (tmp_path / "dying" / "exp" / "lora_checkpoints").is_dir()


def test_processes_share_a_step():
    assert [Team(rank, 2).share(6) for rank in range(2)] == [slice(0, 3), slice(3, 6)]
    with pytest.raises(ConfigError, match="do not divide among 4"):
        Team(0, 4).share(6)
