"""Train a LoRA adapter on extracted features, or continue where an earlier call stopped.

    python train_lora.py exp_id=my_lora_experiment model=small_16k custom_finetune=true
    python train_lora.py exp_id=try model=tiny_16k preset=quick lora.rank=16
    torchrun --nproc-per-node=2 train_lora.py exp_id=... model=...
    python train_lora.py --multirun lora.rank=16,32,64
    python train_lora.py --multirun hydra/launcher=slurm lora.rank=16,32,64    # pip install 'mmaudio-lora[slurm]'

Keys: config/lora_config.yaml. Exit status: 0 done (or done before), 1 failed, 2 wrong use, 130 or 143 interrupted.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import hydra
import torch
import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mmaudio import cli
from mmaudio.config import FOLDER, PRIMARY, TrainConfig, check_names, compose, register, to_config, with_new_keys
from mmaudio.errors import ConfigError, MMAudioError
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.loop import Outcome
from mmaudio.finetune.run_summary import sweep_lines
from mmaudio.finetune.trainer import train
from mmaudio.lora.checkpoint import write_whole

SWEEP = ("--multirun", "-m")
LONGEST = 200
"""Letters of a folder's name that say which settings it is for; systems take 255."""


def main(arguments: list[str]) -> int:
    """Check the overrides, let Hydra compose them and train; the exit status."""
    arguments = ["offline=true" if text == "--offline" else text for text in arguments if text != "--debug"]
    arguments = sorted(arguments, key=lambda text: text not in SWEEP)
    check(arguments)  # the sweep's flag is first now: Hydra's parser refuses it between overrides
    sys.argv = [sys.argv[0], *with_new_keys(arguments)]
    register()
    told = tempfile.TemporaryDirectory(prefix=".train_lora-", dir=".") if elsewhere(arguments) else nullcontext()
    with told as place:
        ended = run_jobs(place)
    outcomes = [end for end in ended if isinstance(end, Outcome)]
    if len(outcomes) > 1 and "RANK" not in os.environ:
        print("", *sweep_lines(outcomes), sep="\n")
    for end in ended:
        if isinstance(end, MMAudioError):
            raise end
    signals = [end.signal for end in outcomes if end.signal is not None]
    return 128 + signals[0] if signals else 0


End = Outcome | MMAudioError
"""Of a job."""


def elsewhere(arguments: list[str]) -> bool:
    """Whether a launcher runs the jobs in other processes, perhaps on other machines."""
    return any(text in SWEEP for text in arguments) and any(text.startswith("hydra/launcher=") for text in arguments)


def run_jobs(place: str | None) -> list[End]:
    """Let Hydra run what the command line asks for; how every job ended, told through files in `place` if given.

    A signal that interrupts one job keeps those after it from starting.
    """
    ended: list[End] = []
    folder = None if place is None else Path(place).resolve()

    def job(composed: DictConfig) -> None:
        if any(isinstance(end, Outcome) and end.signal is not None for end in ended):
            return
        end = end_of(composed)
        ended.append(end)
        if folder is not None:
            if isinstance(end, MMAudioError):
                print(f"error: {end}", file=sys.stderr)  # into the job's own log
            write_whole(folder / f"{HydraConfig.get().job.num:06d}", pickle.dumps(end))

    hydra.main(version_base="1.3", config_path=str(FOLDER), config_name=PRIMARY)(job)()
    return ended if folder is None else [pickle.loads(path.read_bytes()) for path in sorted(folder.iterdir())]


def end_of(composed: DictConfig) -> End:
    """Train; the error of one that fails, which Hydra would print in its own way: cli.run knows ours."""
    try:
        return train_one(composed)
    except MMAudioError as error:
        return error
    except OSError as error:
        return cli.refused(error)
    except (MemoryError, RuntimeError) as error:
        full = cli.out_of_memory(error)
        if full is None:
            raise
        return full


def check(arguments: list[str]) -> None:
    """ConfigError in one line, before Hydra starts, for overrides that do not fit; Hydra's own flags are left to it."""
    flags = {text for text in arguments if text.startswith("-")}
    if flags - set(SWEEP):
        return
    overrides = [text for text in arguments if text not in flags]
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(f"{text!r}: a setting is written key=value, such as batch_size=4")
    check_names(overrides)
    if not flags:
        compose(overrides)


def train_one(composed: DictConfig) -> Outcome:
    """Train one composed configuration; a job of a sweep gets a folder of its own."""
    config: TrainConfig = to_config(composed)
    config = replace(config, offline=cli.is_offline(config.offline))
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        name = job_name(hydra_config.job.override_dirname) or str(hydra_config.job.num)
        config = replace(config, exp_id=f"{config.exp_id}/{name}")
    team = join(config.device)
    try:
        return train(config, team.device, team)
    finally:
        if team.size > 1:
            dist.destroy_process_group()


def job_name(settings: str) -> str:
    """The folder of a sweep's job that Hydra describes as `settings`; long ones end in a hash of the whole."""
    name = re.sub(r"[^\w.,=-]+", "_", settings, flags=re.ASCII)
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def join(device: str) -> Team:
    """This process's place among those that torchrun started, alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team(device=cli.pick_device(device))
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    on_gpu = cli.pick_device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return Team(rank, size, torch.device("cuda", local) if on_gpu else torch.device("cpu"))


if __name__ == "__main__":
    cli.run(main)
