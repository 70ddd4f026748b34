"""Extraction of features: from the table of clips to one shard per source video.

A shard is written again only if its inputs changed: the source file, the windows, the encoders' weights. If only
captions changed, the text features alone are encoded again. A killed run loses at most the videos in work, see
`features.shard_jobs`. Several processes on one folder share the work through file locks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmaudio.data.clip_table import check_videos_inside, read_clips
from mmaudio.data.clips import LeftOut
from mmaudio.data.feature_store import read_header
from mmaudio.errors import DataError
from mmaudio.features.encoders import ENCODER_COMPONENTS, Encoders, load_encoders
from mmaudio.features.extraction_plan import EVERYTHING, NOTHING, ShardPlan, plan_extraction
from mmaudio.features.shard_jobs import BY_OTHERS, write_shards
from mmaudio.utils.files import remove_abandoned_files
from mmaudio.utils.locks import FileLocks

MAX_PRECOMPUTED_CAPTIONS = 64
"""Up to so many captions are encoded first, to drop the text tower; more would be lost if the run is killed."""


@dataclass
class ExtractionReport:
    """The result of an extraction, in videos."""

    valid: int = 0
    """Shards that were valid already."""
    text_only: int = 0
    """Shards whose text features alone were encoded again."""
    extracted: int = 0
    by_other_processes: int = 0
    """Shards that other processes wrote meanwhile."""
    clips: int = 0
    """Clips with features, those of valid shards included."""
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, result: str) -> None:
        """Count a shard by what was done with it, one of `shard_jobs`' words."""
        setattr(self, result, getattr(self, result) + 1)


@dataclass(frozen=True)
class ExtractionConfig:
    """How features are computed."""

    model: str
    weights: Path | None = None
    """Folder of the weights."""
    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    """Of the transformers; None: bfloat16 on a GPU, else float32."""
    exact_dtype: bool = False
    """Whether existing features of another dtype are stale."""
    allow_outside: bool = False
    """Whether the table may name videos outside of the folder of videos."""
    rank: int = 0
    """Number of this process: each begins with another part of the videos."""
    world_size: int = 1
    """Number of processes."""
    readers: int | None = None
    """Videos that are read at once; None: by the cores, the memory and the device."""
    check_values: bool = False
    """Read the values of all shards, and write those with values that are not finite again."""


def extract(
    clips_tsv: Path,
    video_root: Path,
    out_dir: Path,
    config: ExtractionConfig,
    progress: Callable[[list[ShardPlan]], Iterable[ShardPlan]] = iter,
    on_plan: Callable[[list[ShardPlan]], None] = lambda plans: None,
) -> ExtractionReport:
    """Write the feature shards of the table's videos (below `video_root`) into `out_dir`.

    `on_plan` is called with the invalid shards before any is written. An unusable video is left out with the reason.
    Raises DataError for an unusable table and where no clip gets features, MMAudioError if nothing can be written.
    """
    precision = str(config.dtype).removeprefix("torch.") if config.exact_dtype else ""
    clips = read_clips(clips_tsv)
    if not config.allow_outside:
        check_videos_inside(clips_tsv, clips)
    plans = plan_extraction(clips, video_root, out_dir, config.model, config.weights, precision, config.check_values)
    invalid = [plan for plan in plans if plan.todo != NOTHING]
    report = ExtractionReport(valid=len(plans) - len(invalid))
    on_plan(invalid)
    if invalid:
        _write_shards(invalid, config, out_dir, report, progress)
    for plan in plans:
        header = read_header(plan.shard)
        if header is None:
            raise DataError(f"{plan.shard}: was removed during extraction; the same command writes it again")
        if header.left_out:
            report.left_out.append(LeftOut(header.video, header.left_out))
        else:
            report.clips += len(header.clip_ids)
    if plans and not report.clips:
        raise DataError(f"{clips_tsv}: no clip could be used; {report.left_out[0].video}: {report.left_out[0].reason}")
    return report


def _write_shards(
    plans: list[ShardPlan],
    config: ExtractionConfig,
    out_dir: Path,
    report: ExtractionReport,
    progress: Callable[[list[ShardPlan]], Iterable[ShardPlan]],
) -> None:
    """Write the shards that no other process has locked: this rank's first, then the remaining ones."""
    rank_plans = plans[config.rank :: config.world_size]
    with FileLocks(out_dir) as locks:
        remove_abandoned_files(out_dir)
        encoders = _load_encoders(plans, config)
        ordered = rank_plans + [plan for plan in plans if plan not in rank_plans]
        results = write_shards(ordered, encoders, locks, config.readers)
        locked = []
        with closing(results):
            for _, (plan, result) in zip(progress(ordered), results, strict=True):
                if result is None:
                    locked.append(plan)
                else:
                    report.add(result)
        for plan in locked:  # once unlocked it is complete, unless its process was killed
            locks.wait(plan.shard.name, f"another process extracts {plan.header.video}")
            with closing(write_shards([plan], encoders, locks)) as again:
                for _, result in again:
                    report.add(result or BY_OTHERS)


def _load_encoders(plans: list[ShardPlan], config: ExtractionConfig) -> Encoders:
    names = tuple(ENCODER_COMPONENTS) if any(plan.todo == EVERYTHING for plan in plans) else ("clip",)
    encoders = load_encoders(config.model, config.weights, config.device, names, config.dtype)
    captions = dict.fromkeys(clip.caption for plan in plans for clip in plan.clips)
    if len(captions) <= MAX_PRECOMPUTED_CAPTIONS:
        encoders.drop_text_tower(captions)
    return encoders
