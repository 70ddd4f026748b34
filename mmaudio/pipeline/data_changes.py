"""Changes of the folder of videos since an experiment's training began, which could not continue with other clips."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from mmaudio.data.captions import Captions
from mmaudio.data.clip_table import left_out_path, read_clips, read_left_out
from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import read_header, shard_path
from mmaudio.data.fingerprint import fingerprint
from mmaudio.data.folder_split import name_in_table
from mmaudio.data.folds import fold_folder
from mmaudio.data.split_files import SplitFiles
from mmaudio.data.video_files import VIDEO_SUFFIXES, find_videos
from mmaudio.errors import DataError, MMAudioError
from mmaudio.pipeline.job import STAGES, Job

OTHER_CAPTIONS = "with other captions"
"""The kind of change of a video whose captions changed."""
MAX_NAMES = 3
"""Names of files that a line lists."""


def find_data_changes(job: Job) -> dict[str, list[str]]:
    """The videos of each kind of change since training began; empty where there is none, or training begins anew."""
    folders = (job.experiment, fold_folder(job.experiment, 1))
    all_adapters = [folder / "lora_checkpoints" for folder in folders]
    adapters = next((path for path in all_adapters if (path / "state.pt").is_file()), all_adapters[0])
    if starts_anew(job) or not (adapters / "state.pt").is_file() or not job.videos.is_dir():
        return {}
    from mmaudio.lora.checkpoint import read_adapter  # here, as peft takes seconds to import

    try:
        data = read_adapter(adapters / "last_lora.pt").data
        clips = read_clips(job.clips)
        known = {clip.video for clip in clips} | {row.video for row in read_left_out(left_out_path(job.clips))}
    except (MMAudioError, OSError):  # training or splitting says what is wrong with it
        return {}
    recursive = "--recursive" in job.split_arguments
    ignored_paths = SplitFiles(job.clips).ignored_paths(job.videos)
    paths = {name_in_table(path, job.videos): path for path in find_videos(job.videos, ignored_paths, recursive)}
    trained = {video for split in ("train", "validation") for video in data.get(split, {}).get("videos", [])}
    changes = {
        "new": sorted(paths.keys() - known - trained),
        "gone": sorted(trained - paths.keys()),
        "changed": sorted(video for video in trained & paths.keys() if has_changed(job, video, paths[video])),
        OTHER_CAPTIONS: find_other_captions(job, list(paths), [clip for clip in clips if clip.video in trained]),
    }
    return {kind: names for kind, names in changes.items() if names}


def starts_anew(job: Job) -> bool:
    """Whether the job trains from step 0, whatever was trained before."""
    return job.first_stage is not None and STAGES.index(job.first_stage) <= STAGES.index("train")


def has_changed(job: Job, video: str, path: Path) -> bool:
    """Whether a video is not the one of which the features are."""
    header = read_header(shard_path(job.features, video))
    return header is not None and bool(header.source) and header.source != fingerprint(path)


def find_other_captions(job: Job, files: Sequence[str], clips: Sequence[Clip]) -> list[str]:
    """The videos of which one of `clips` would get another caption than the one that its features were made with.

    `files`: the names of all files in the folder.
    """
    flags = dict(itertools.pairwise(job.split_arguments))
    table, others = flags.get("--captions"), set()
    try:
        captions = Captions(job.videos, job.prompt or "", None if table is None else Path(table))
        captions.match_videos([name for name in files if Path(name).suffix.lower() in VIDEO_SUFFIXES])
        for video, video_clips in itertools.groupby(clips, key=lambda clip: clip.video):
            header = read_header(shard_path(job.features, video)) if video in files else None
            known = {} if header is None else dict(zip(header.clip_ids, header.captions, strict=True))
            if any(captions.find(video, c.id, c.start) != known[c.id] for c in video_clips if c.id in known):
                others.add(video)
    except DataError:  # splitting says what is wrong with it
        return []
    return sorted(others)


def describe_data_changes(changes: dict[str, list[str]]) -> str:
    """How many files there are of each kind of change, and the first names."""
    return ", ".join(
        f"{len(names)} {kind} ({', '.join(names[:MAX_NAMES])}{', ...' * (len(names) > MAX_NAMES)})"
        for kind, names in changes.items()
    )
