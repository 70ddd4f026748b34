"""Distributed training: the losses of one process, for every kind of adapter, and the errors where one dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TESTS

from mmaudio.errors import ConfigError
from mmaudio.finetune.distributed import Distributed
from mmaudio.lora.checkpoint import read_adapter

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
import torch.distributed as dist
import peft, scipy.stats, torch._dynamo, torch.utils.tensorboard  # what training imports late: once, not in each child
import mini_training
from mmaudio.errors import TrainingError
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.tracker import Tracker
from mmaudio.lora.adapter import LoRAConfig

torch.set_num_threads(1)
folder = Path(sys.argv[1])
plain = {"lora": LoRAConfig(rank=4, alpha=8.0, dropout=0.0), "max_steps": 4}

def record_writes(run_folder, rank):
    # adds a line to a file of this process whenever it writes, renames or links in the run's folder
    file = os.open(folder / f"{run_folder.name}.{rank}.wrote", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    def hook(event, args):
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        changes = writes or event in ("os.rename", "os.link", "os.mkdir")
        if changes and str(args[0]).startswith(str(run_folder / "exp")):
            os.write(file, f"{event} {args[0]}\\n".encode())
    sys.addaudithook(hook)

def train_rank(name, rank, world_size, signalled_rank, number, runs):
    record_writes(folder / name, rank)
    if world_size > 1:
        rendezvous = f"file://{folder / name}.rendezvous"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    original = Tracker.log_step
    def log_step(self, state, metrics):
        if rank == signalled_rank and state.step == 2:
            os.kill(os.getpid(), number)
        original(self, state, metrics)
    Tracker.log_step = log_step
    try:
        for run, settings in runs.items():
            mini_training.train_mini(folder / run, distributed=Distributed(rank, world_size), **settings)
    except TrainingError as error:
        (folder / f"{name}.{rank}.error").write_text(str(error))

def start(name, world_size, signalled_rank=None, number=signal.SIGKILL, runs=None):
    children = []
    for rank in range(world_size):
        children.append(os.fork())
        if not children[-1]:
            train_rank(name, rank, world_size, signalled_rank, number, runs or {name: plain})
            os._exit(0)
    return [os.waitpid(child, 0)[1] for child in children]
"""
SIZES = """
for size in (1, 2, 4):
    assert start(f"of-{size}", size) == [0] * size
assert start("dying", 4, signalled_rank=2) == [0, 0, 9, 0]
assert start("signalled", 2, signalled_rank=1, number=signal.SIGUSR1) == [0, 0]
(folder / "signalled.rendezvous").unlink()
assert start("signalled", 2) == [0, 0]
"""
KINDS = """
from mini_adapters import KINDS
from mmaudio.lora.adapter import Phase

phases = [Phase(4, 2), Phase(8, 2)]
lora = {name.replace(" ", "-"): {"lora": lora} for name, lora in KINDS.items()}
lora["growing"] = {"lora": LoRAConfig(rank=4, alpha=8.0, dropout=0.0, phases=phases), "ema_decay": 0.9}
lora["growing-rslora"] = {
    "lora": LoRAConfig(rank=4, alpha=8.0, dropout=0.0, phases=phases, use_rslora=True), "preserve_base": 0.5,
    "preserve_share": 0.25,
}
common = {"max_steps": 4, "learning_rate": 1e-3, "weight_decay": 0.0}
for size in (1, 2):
    runs = {f"{name}-{size}": settings | common for name, settings in lora.items()}
    assert start(f"all-{size}", size, runs=runs) == [0] * size
print(*lora)
"""


def run_script(folder: Path, script: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{ROOT}"}
    command = [sys.executable, "-c", SCRIPT + script, str(folder)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def curve(folder: Path, key: str) -> list[float]:
    lines = (folder / "exp" / "metrics.jsonl").read_text().splitlines()
    return [row[key] for row in map(json.loads, lines) if key in row]


@pytest.mark.slow
def test_world_sizes_agree_and_the_survivors_of_a_dead_rank_stop(tmp_path):
    output = run_script(tmp_path, SIZES)
    for key in ("train/loss", "validation/loss", "train/grad_norm"):
        single = curve(tmp_path / "of-1", key)
        assert len(single) >= 3 and single[0] != single[-1]
        for name in ("of-2", "of-4", "signalled"):
            assert curve(tmp_path / name, key) == pytest.approx(single, rel=2e-3), (key, name)
    assert output.count("finished at step 4") == 4, "the first process alone prints"
    assert output.count("interrupted at step 2, saved") == output.count("resumed:    at step 2") == 1
    writers = {path.name.removesuffix(".wrote") for path in tmp_path.glob("*.wrote") if path.stat().st_size}
    assert writers == {"of-1.0", "of-2.0", "of-4.0", "dying.0", "signalled.0"}, "the first process alone writes"
    errors = {path.name: path.read_text() for path in tmp_path.glob("*.error")}
    assert set(errors) == {f"dying.{rank}.error" for rank in (0, 1, 3)}, "the survivors end, and say why"
    assert all("lost the others" in text and "The same command continues" in text for text in errors.values())
    assert not any("imed out" in text for text in errors.values()), "at once, not after torch's half an hour"
    assert (tmp_path / "dying" / "exp" / "lora_checkpoints").is_dir()


@pytest.mark.slow
def test_every_adapter_kind_trains_alike_in_two_processes(tmp_path):
    names = run_script(tmp_path, KINDS).splitlines()[-1].split()
    assert {"rslora", "dora", "pissa", "ranks", "full", "growing", "growing-rslora"} <= set(names)
    for name in names:
        for key in ("train/loss", "validation/loss", "train/grad_norm"):
            single = curve(tmp_path / f"{name}-1", key)
            assert len(single) >= 3 and single[0] != single[-1], name
            assert curve(tmp_path / f"{name}-2", key) == pytest.approx(single, rel=2e-3), (name, key)
    grown = [read_adapter(tmp_path / f"growing-{size}" / "exp/lora_checkpoints/last_lora.pt") for size in (1, 2)]
    assert [file.lora.rank for file in grown] == [8, 8]
    one, two = (torch.cat([value.flatten() for value in file.state.values()]) for file in grown)
    assert float((one - two).norm()) < 2e-2 * float(one.norm())


def test_a_step_is_sharded_over_the_ranks():
    assert [Distributed(rank, 2).shard(6) for rank in range(2)] == [slice(0, 3), slice(3, 6)]
    with pytest.raises(ConfigError, match="do not divide among 4"):
        Distributed(0, 4).shard(6)
    assert [Distributed(rank, 3).uneven_shard(5) for rank in range(3)] == [slice(0, 1), slice(1, 3), slice(3, 5)]
    assert [Distributed(rank, 2).uneven_shard(1) for rank in range(2)] == [slice(0, 0), slice(0, 1)]
