"""Folds of a job before any work: how many there are, what they take, and what the plan says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmaudio.config import compose
from mmaudio.data.clips import MIN_VERDICT_VIDEOS
from mmaudio.data.folds import AUTO_MAX_VIDEOS, can_have_folds, count_folds, fold_folder
from mmaudio.model.cost_model import format_duration
from mmaudio.pipeline.data_changes import starts_anew
from mmaudio.pipeline.job import Job, training_overrides
from mmaudio.utils.setting_checks import AUTO, ON
from mmaudio.utils.terminal import print_lines


def count_job_folds(job: Job, num_videos: int, on_gpu: bool) -> int:
    """The folds that a job has with so many videos, 0 for none; ConfigError where more are asked for than can be had.

    A dry run of the demo has no videos yet.
    """
    if not num_videos or not can_have_folds("--folds ", job.folds, compose(training_overrides(job))):
        return 0
    return count_folds("--folds ", job.folds, num_videos, on_gpu, None if starts_anew(job) else job.experiment)


def print_folds(job: Job, num_videos: int, training: float, estimate_evaluation: Callable[[int], float]) -> None:
    """Print what the folds do and take, or on a CPU, where none is taken unless asked for, what they would take.

    `training`: seconds of one training; `estimate_evaluation` gives those of one evaluation, by the number of folds.
    """
    if job.num_folds:
        evaluation = estimate_evaluation(job.num_folds)
        print_lines(
            f"folds:    {job.num_folds}: each of {num_videos} videos is held out once, and the adapter gets all",
            f"          a fold takes at most {format_duration(training)} of training, and about "
            f"{format_duration(evaluation)} of evaluation; --folds off trains once",
        )
    elif job.folds == AUTO and MIN_VERDICT_VIDEOS <= num_videos <= AUTO_MAX_VIDEOS:
        number = count_folds("--folds ", ON, num_videos, on_gpu=False)
        seconds = number * (training + estimate_evaluation(number))
        print_lines(
            f"folds:    off here; --folds on trains {number} times more, for a verdict over all {num_videos} videos: "
            f"about {format_duration(seconds)} more"
        )


def fold_experiments(job: Job) -> list[Path]:
    """The folders of the experiments that training makes: of each fold, then that of the adapter."""
    return [*(fold_folder(job.experiment, number) for number in range(1, job.num_folds + 1)), job.experiment]
