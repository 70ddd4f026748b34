"""Changes of the folder of videos since an experiment's training began, which could not continue with other clips."""

from __future__ import annotations

from pathlib import Path

from mmaudio.data.clip_table import left_out_path, read_clips, read_left_out
from mmaudio.data.feature_store import read_header, shard_path
from mmaudio.data.fingerprint import fingerprint
from mmaudio.data.folder_split import name_in_table
from mmaudio.data.video_files import find_videos
from mmaudio.errors import MMAudioError
from mmaudio.pipeline.job import STAGES, Job

MAX_NAMES = 3
"""Names of files that a line lists."""


def find_data_changes(job: Job) -> dict[str, list[str]]:
    """Files that are new, gone or changed since training began; empty where there are none, or it begins anew."""
    adapters = job.experiment / "lora_checkpoints"
    if starts_anew(job) or not (adapters / "state.pt").is_file() or not job.videos.is_dir():
        return {}
    from mmaudio.lora.checkpoint import read_adapter  # here, as peft takes seconds to import

    try:
        data = read_adapter(adapters / "last_lora.pt").data
        known = {clip.video for clip in read_clips(job.clips)}
        known |= {row.video for row in read_left_out(left_out_path(job.clips))}
    except (MMAudioError, OSError):  # training or splitting says what is wrong with it
        return {}
    recursive = "--recursive" in job.split_arguments
    paths = {name_in_table(path, job.videos): path for path in find_videos(job.videos, ignored_paths(job), recursive)}
    trained = {video for split in ("train", "validation") for video in data.get(split, {}).get("videos", [])}
    changes = {
        "new": sorted(paths.keys() - known - trained),
        "gone": sorted(trained - paths.keys()),
        "changed": sorted(video for video in trained & paths.keys() if has_changed(job, video, paths[video])),
    }
    return {kind: names for kind, names in changes.items() if names}


def starts_anew(job: Job) -> bool:
    """Whether the job trains from step 0, whatever was trained before."""
    return job.first_stage is not None and STAGES.index(job.first_stage) <= STAGES.index("train")


def ignored_paths(job: Job) -> tuple[Path, ...]:
    """Results below the folder of videos, which are no part of it."""
    below = job.videos.resolve() in job.clips.resolve().parent.parents
    return (job.clips.parent,) if below else ()


def has_changed(job: Job, video: str, path: Path) -> bool:
    """Whether a video is not the one of which the features are."""
    header = read_header(shard_path(job.features, video))
    return header is not None and bool(header.source) and header.source != fingerprint(path)


def describe_data_changes(changes: dict[str, list[str]]) -> str:
    """How many files are new, gone or changed, and the first names of each kind."""
    return ", ".join(
        f"{len(names)} {kind} ({', '.join(names[:MAX_NAMES])}{', ...' * (len(names) > MAX_NAMES)})"
        for kind, names in changes.items()
    )
