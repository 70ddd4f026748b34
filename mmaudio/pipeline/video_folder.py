"""Videos of a job before splitting: how many and how long they are, and whether they allow a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from mmaudio.data.config import SplitConfig
from mmaudio.data.folder_split import name_in_table
from mmaudio.data.splits import SplitRatios, SplitStore
from mmaudio.data.verdict_needs import count_held_out, describe_verdict_needs
from mmaudio.data.video_files import find_video_below, find_videos
from mmaudio.errors import DataError
from mmaudio.media.video import probe
from mmaudio.pipeline.job import DEMO_SPLIT, STAGES, Job
from mmaudio.utils.progress import Progress
from mmaudio.utils.terminal import print_lines


def measure_videos(job: Job) -> tuple[float, list[str]]:
    """Total duration in seconds and names of the readable videos; a dry run of the demo has none yet."""
    if job.demo and not job.videos.is_dir():
        return 0.0, []
    seconds, names = 0.0, []
    paths = find_videos(job.videos, recursive="--recursive" in job.split_arguments)
    with Progress(len(paths), "looking at the videos", inner=True) as counter:
        for path in counter.count(paths):
            try:
                seconds += probe(path).duration
            except DataError:
                continue  # splitting reports it with the reason
            names.append(name_in_table(path, job.videos))
    return seconds, names


def find_video_in_subfolder(job: Job) -> str | None:
    """A video in a sub-folder that the job leaves out without --recursive."""
    if "--recursive" in job.split_arguments or not job.videos.is_dir():
        return None
    return find_video_below(job.videos, (job.clips.parent,))


def split_ratios(job: Job, split: SplitConfig) -> SplitRatios:
    """How much the job holds out."""
    is_default = job.demo and DEMO_SPLIT[0] not in job.split_arguments
    return SplitRatios(split.val_ratio, float(DEMO_SPLIT[1]) if is_default else split.test_ratio, split.seconds)


def print_verdict_needs(job: Job, names: Sequence[str], ratios: SplitRatios) -> None:
    """Print why the videos `names` will allow no verdict, and the ways to one; nothing where they or folds do."""
    if not names or job.num_folds:
        return
    is_reset = job.first_stage == STAGES[0]
    previous = {} if is_reset else SplitStore(job.clips.with_suffix(".splits.json"), ratios).splits
    lines = describe_verdict_needs(count_held_out(names, ratios, previous), len(names), ratios)
    for label, line in zip(("verdict:", *[""] * len(lines)), lines, strict=False):
        print_lines(f"{label:10}{line}")
