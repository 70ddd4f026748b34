"""Training with folds: an adapter for each, then the one that the user gets, on all videos.

Every fold is an experiment of its own below EXPERIMENT/folds, trained on a table of its own (`data.folds`); its
validation chooses its best step. The last adapter has no validation: it takes as many steps as the folds' best ones,
their median, in proportion to the clips. Several processes on one experiment share the folds through file locks.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mmaudio.config import TrainConfig
from mmaudio.data.clip_table import read_clips
from mmaudio.data.folds import (
    FoldPlan,
    all_clips_table,
    can_have_folds,
    count_folds,
    fold_folder,
    fold_table,
    folds_folder,
    read_fold_plan,
    usable_clips,
    write_fold_tables,
)
from mmaudio.errors import ConfigError, TrainingError
from mmaudio.finetune.checkpoint import Checkpoints, experiment_folder
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.loop import TrainingResult
from mmaudio.finetune.trainer import train
from mmaudio.lora.checkpoint import read_adapter
from mmaudio.utils.locks import FileLocks
from mmaudio.utils.setting_checks import OFF
from mmaudio.utils.terminal import print_lines


def train_with_folds(config: TrainConfig, device: torch.device, distributed: Distributed) -> TrainingResult:
    """Train every fold and the adapter of all videos, or without folds the one adapter; the last one's result.

    With `fold` that fold alone. Raises as `train` and `write_fold_tables`.
    """
    root = experiment_folder(config)
    num_folds = count_training_folds(config, root, device)
    if not num_folds:
        return train(config, device, distributed)
    if read_fold_plan(root) is None and Checkpoints(root).state.exists():
        raise TrainingError(
            f"{root} was trained without folds; take another exp_id, or start over in a new folder with resume=false "
            "(of the pipeline: --from train)"
        )
    config = replace(config, exp_id=root.relative_to(config.output_dir).as_posix(), resume=True)
    plan = prepare_plan(config, root, num_folds, distributed)
    run = FoldTraining(config, root, plan, device, distributed)
    result = run.train_folds(plan.numbers if config.fold is None else [config.fold])
    if result.signal is not None or config.fold is not None:
        return result
    return run.train_final()


def count_training_folds(config: TrainConfig, root: Path, device: torch.device) -> int:
    """The number of folds of the experiment `root`, 0 for none; ConfigError where they do not go together."""
    if not can_have_folds("folds=", config.folds, config):
        return 0
    clips = usable_clips(Path(config.clips_tsv), Path(config.features_dir))
    videos, on_gpu = {clip.video for clip in clips}, device.type == "cuda"
    num_folds = count_folds("folds=", config.folds, len(videos), on_gpu, root)
    if config.fold is not None and config.fold > num_folds:
        raise ConfigError(f"fold={config.fold}: there are {num_folds} folds with folds={config.folds} here")
    return num_folds


def prepare_plan(config: TrainConfig, root: Path, num_folds: int, distributed: Distributed) -> FoldPlan:
    """The plan of the folds, which the main process writes with every table."""
    clips_tsv, features_dir = Path(config.clips_tsv), Path(config.features_dir)
    if distributed.is_main:
        with FileLocks(folds_folder(root)) as locks:
            locks.wait("plan", "another process divides the videos into folds")
            write_fold_tables(root, clips_tsv, features_dir, num_folds)
    distributed.barrier()
    plan = read_fold_plan(root)
    assert plan is not None
    return plan


@dataclass(frozen=True)
class FoldTraining:
    """The training of an experiment's folds."""

    config: TrainConfig
    root: Path
    plan: FoldPlan
    device: torch.device
    distributed: Distributed

    def train_folds(self, numbers: Sequence[int]) -> TrainingResult:
        """Train folds, first those that no other process trains; the last one's result, or the interrupted one's."""
        results: list[TrainingResult] = []
        remaining = list(numbers)
        for is_waiting in (False, True):
            for number in list(remaining):
                with self.lock(f"fold {number}", is_waiting) as is_free:
                    if is_free:
                        results.append(self.train_fold(number))
                        remaining.remove(number)
                if results and results[-1].signal is not None:
                    return results[-1]
        return results[-1]

    @contextmanager
    def lock(self, name: str, is_waiting: bool) -> Iterator[bool]:
        """Hold a lock for the block, which gets whether it is held, in all processes of this run alike.

        Where it waits for another run and several processes work here, TrainingError: they cannot wait for long.
        """
        if self.distributed.world_size > 1 and is_waiting:
            raise TrainingError(f"{name} is trained by another process; the same command goes on once it has ended")
        if not self.distributed.is_main:
            yield not self.distributed.all_reduce_any(False)
            return
        with FileLocks(folds_folder(self.root)) as locks:
            if is_waiting:
                locks.wait(name, f"another process trains {name}")
            is_busy = not (is_waiting or locks.acquire(name))
            yield not self.distributed.all_reduce_any(is_busy)

    def train_final(self) -> TrainingResult:
        """Train the adapter of all videos, once every fold is trained."""
        config = final_config(self.config, self.root, self.plan, self.distributed)
        name = "the adapter of all videos"
        with self.lock(name, False) as is_free:
            if is_free:
                return train(config, self.device, self.distributed)
        with self.lock(name, True):
            return train(config, self.device, self.distributed)

    def train_fold(self, number: int) -> TrainingResult:
        """Train one fold, or find that it is trained."""
        if self.distributed.is_main:
            names = ", ".join(self.plan.videos[number - 1])
            print_lines("", f"-- fold {number} of {len(self.plan)}: held out {names}", flush=True)
        fold = replace(
            self.config,
            exp_id=f"{self.config.exp_id}/{fold_folder(self.root, number).relative_to(self.root).as_posix()}",
            clips_tsv=str(fold_table(self.root, number)),
            validation=replace(self.config.validation, split_ratio=None),
            folds=OFF,
            fold=None,
        )
        return train(fold, self.device, self.distributed)


def final_config(config: TrainConfig, root: Path, plan: FoldPlan, distributed: Distributed) -> TrainConfig:
    """The settings of the adapter that the user gets: all clips, and the steps that the folds' best ones say."""
    table = all_clips_table(root)
    adapters = [read_adapter(Checkpoints(fold_folder(root, number)).best) for number in plan.numbers]
    best_steps = [adapter.step or 0 for adapter in adapters]
    steps = final_steps(best_steps, [adapter.data["train"]["clips"] for adapter in adapters], len(read_clips(table)))
    if distributed.is_main:
        text = ", ".join(map(str, best_steps))
        print_lines(
            "", f"-- all {sum(map(len, plan.videos))} videos: {steps} steps (the folds' best: {text})", flush=True
        )
    return replace(
        config,
        clips_tsv=str(table),
        max_steps=steps,
        lora=replace(config.lora, max_steps=None),
        validation=replace(config.validation, enabled=False, split_ratio=None),
        early_stopping=replace(config.early_stopping, enabled=False),
        folds=OFF,
        fold=None,
    )


def final_steps(best_steps: Sequence[int], fold_clips: Sequence[int], num_clips: int) -> int:
    """The median of the folds' best steps, each in proportion to the clips; at least 1, as no fold may have learned."""
    scaled = [step * num_clips / clips for step, clips in zip(best_steps, fold_clips, strict=True)]
    return max(1, round(statistics.median(scaled)))
