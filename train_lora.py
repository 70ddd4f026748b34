"""Train a LoRA adapter on extracted features, or continue where an earlier call stopped.

    python train_lora.py exp_id=my_lora_experiment model=small_16k custom_finetune=true
    python train_lora.py exp_id=try model=tiny_16k preset=quick lora.rank=16
    torchrun --nproc-per-node=2 train_lora.py exp_id=... model=...
    python train_lora.py exp_id=... model=... folds=5    # cross-validation: see docs/training.md
    python train_lora.py --multirun lora.rank=16,32,64
    python train_lora.py --multirun hydra/launcher=slurm lora.rank=16,32,64    # pip install 'mmaudio-lora[slurm]'

Keys: config/lora_config.yaml. Exit status: 0 done (or done before), 1 failed, 2 wrong use, 130 or 143 interrupted.
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

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

from mmaudio.commands.train_help import format_help
from mmaudio.config import (
    CONFIG_FOLDER,
    PRIMARY_CONFIG,
    TrainConfig,
    allow_new_keys,
    check_override_names,
    compose,
    register_schema,
    to_train_config,
)
from mmaudio.errors import ConfigError, MMAudioError
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.fold_training import train_with_folds
from mmaudio.finetune.loop import TrainingResult
from mmaudio.finetune.sweep_table import format_sweep_table
from mmaudio.lora.checkpoint import write_synced
from mmaudio.utils.terminal import print_lines

SWEEP_FLAGS = ("--multirun", "-m")
MAX_NAME_LENGTH = 200
"""Characters of a folder's name that say which settings it is for; file systems allow 255."""
JobResult = TrainingResult | MMAudioError
"""The result of one job, or the error that ended it."""


def main(arguments: list[str]) -> int:
    """Check the overrides, let Hydra compose them and train; the exit status."""
    if {"-h", "--help"} & set(arguments):
        print_lines(*format_help(sys.argv[0]))
        sys.exit(0)
    arguments = ["offline=true" if text == "--offline" else text for text in arguments if text != "--debug"]
    arguments = sorted(arguments, key=lambda text: text not in SWEEP_FLAGS)
    check_overrides(arguments)  # the sweep's flag is first now: Hydra's parser refuses it between overrides
    sys.argv = [sys.argv[0], *allow_new_keys(arguments)]
    register_schema()
    with results_folder(arguments) as folder:
        job_results = run_jobs(folder)
    results = [result for result in job_results if isinstance(result, TrainingResult)]
    if len(results) > 1 and "RANK" not in os.environ:
        print_lines("", *format_sweep_table(results))
    for result in job_results:
        if isinstance(result, MMAudioError):
            raise result
    signals = [result.signal for result in results if result.signal is not None]
    return 128 + signals[0] if signals else 0


def results_folder(arguments: list[str]) -> tempfile.TemporaryDirectory[str] | nullcontext[None]:
    """A folder for results where a launcher runs the jobs in other processes, perhaps on other machines; else None."""
    is_sweep = any(text in SWEEP_FLAGS for text in arguments)
    if is_sweep and any(text.startswith("hydra/launcher=") for text in arguments):
        return tempfile.TemporaryDirectory(prefix=".train_lora-", dir=".")
    return nullcontext()


def run_jobs(results_path: str | None) -> list[JobResult]:
    """Let Hydra run the job, or a sweep's jobs; their results, read from files in `results_path` where it is given.

    A signal that interrupts one job keeps those after it from starting.
    """
    results: list[JobResult] = []
    folder = None if results_path is None else Path(results_path).resolve()

    def run_job(composed: DictConfig) -> None:
        """Train with one job's settings, unless an earlier job was interrupted."""
        if any(isinstance(result, TrainingResult) and result.signal is not None for result in results):
            return
        result = try_training(composed)
        results.append(result)
        if folder is not None:
            if isinstance(result, MMAudioError):
                print_lines(f"error: {result}", file=sys.stderr)  # into the job's own log
            write_synced(folder / f"{HydraConfig.get().job.num:06d}", pickle.dumps(result))

    hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=PRIMARY_CONFIG)(run_job)()
    return results if folder is None else [pickle.loads(path.read_bytes()) for path in sorted(folder.iterdir())]


def try_training(composed: DictConfig) -> JobResult:
    """Train; the error of a job that fails is returned, because Hydra would print it in its own way."""
    try:
        return train_composed(composed)
    except MMAudioError as error:
        return error
    except OSError as error:
        return cli.describe_os_error(error)
    except (MemoryError, RuntimeError) as error:
        out_of_memory = cli.describe_out_of_memory(error)
        if out_of_memory is None:
            raise
        return out_of_memory


def check_overrides(arguments: list[str]) -> None:
    """ConfigError in one line, before Hydra starts, for overrides that do not fit; Hydra's own flags are left to it."""
    flags = {text for text in arguments if text.startswith("-")}
    if flags - set(SWEEP_FLAGS):
        return
    overrides = [text for text in arguments if text not in flags]
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(f"{text!r}: a setting is written key=value, such as batch_size=4")
    check_override_names(overrides)
    if not flags:
        compose(overrides)


def train_composed(composed: DictConfig) -> TrainingResult:
    """Train one composed configuration; every job of a sweep has its own folder, but for those of folds."""
    config: TrainConfig = to_train_config(composed)
    config = replace(config, offline=cli.is_offline(config.offline))
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and config.fold is None:  # folds share one experiment
        name = job_folder_name(hydra_config.job.override_dirname) or str(hydra_config.job.num)
        config = replace(config, exp_id=f"{config.exp_id}/{name}")
    distributed = init_distributed(config.device)
    try:
        return train_with_folds(config, distributed.device, distributed)
    finally:
        if distributed.world_size > 1:
            dist.destroy_process_group()


def job_folder_name(settings: str) -> str:
    """The folder name of a sweep's job that Hydra describes as `settings`; long ones end in a hash of the whole."""
    name = re.sub(r"[^\w.,=-]+", "_", settings, flags=re.ASCII)
    if len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{name[:MAX_NAME_LENGTH]}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def init_distributed(device: str) -> Distributed:
    """Rank and world size of this process as torchrun set them; one process without it."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Distributed(device=cli.pick_device(device))
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    on_gpu = cli.pick_device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return Distributed(rank, world_size, torch.device("cuda", local_rank) if on_gpu else torch.device("cpu"))


if __name__ == "__main__":
    cli.run(main)
