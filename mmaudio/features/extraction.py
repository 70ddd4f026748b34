"""Extraction of features: from the table of clips to one shard per source video.

A shard is written again only if its inputs changed: the source file, the windows, the encoders' weights. If only
captions changed, the text features alone are encoded again. A killed run loses at most the video in progress. Several
processes on one folder share the work through file locks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mmaudio.data.clip_table import check_videos_inside, read_clips
from mmaudio.data.clips import LeftOut
from mmaudio.data.feature_set import FEATURE_NAMES
from mmaudio.data.feature_store import Header, open_shard_writer, read_header, write_shard
from mmaudio.data.fingerprint import fingerprint
from mmaudio.errors import DataError
from mmaudio.features.encoders import ENCODER_COMPONENTS, Encoders, load_encoders
from mmaudio.features.extraction_plan import EVERYTHING, NOTHING, TEXTS, ShardPlan, plan_extraction, without_source
from mmaudio.features.video_features import WriteRow, encode_captions, encode_clips, feature_shapes
from mmaudio.utils.files import remove_abandoned_files
from mmaudio.utils.locks import FileLocks
from mmaudio.utils.progress import Progress

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
        locked = []
        for plan in progress(rank_plans + [plan for plan in plans if plan not in rank_plans]):
            if locks.acquire(plan.shard.name):
                _write_shard(plan, encoders, report)
                locks.release(plan.shard.name)
            else:
                locked.append(plan)
        for plan in locked:  # once unlocked it is complete, unless its process was killed
            locks.wait(plan.shard.name, f"another process extracts {plan.header.video}")
            _write_shard(plan, encoders, report)
            locks.release(plan.shard.name)


def _load_encoders(plans: list[ShardPlan], config: ExtractionConfig) -> Encoders:
    names = tuple(ENCODER_COMPONENTS) if any(plan.todo == EVERYTHING for plan in plans) else ("clip",)
    encoders = load_encoders(config.model, config.weights, config.device, names, config.dtype)
    captions = dict.fromkeys(clip.caption for plan in plans for clip in plan.clips)
    if len(captions) <= MAX_PRECOMPUTED_CAPTIONS:
        encoders.drop_text_tower(captions)
    return encoders


def _write_shard(plan: ShardPlan, encoders: Encoders, report: ExtractionReport) -> None:
    """Write one video's shard, or the reason for leaving the video out, unless another process has written it."""
    if plan.is_written_since():
        report.by_other_processes += 1
        return
    header = replace(plan.header, precision=str(encoders.dtype).removeprefix("torch."))
    if plan.reused_shard is not None and (reused_header := read_header(plan.reused_shard)) is not None:
        header = replace(header, precision=reused_header.precision)
    try:
        _write_features(plan, header, encoders)
    except DataError as error:
        reason = str(error).removeprefix(f"{plan.path.name}: ")
        if fingerprint(plan.path) != plan.header.source:  # the video changed or was removed: the next run tries again
            header = without_source(header)
        write_shard(plan.shard, replace(header, left_out=reason), None)
    if plan.todo == TEXTS:
        report.text_only += 1
    else:
        report.extracted += 1


def _write_features(plan: ShardPlan, header: Header, encoders: Encoders) -> None:
    """Write the features of a video; DataError with the reason for leaving it out."""
    if plan.todo == TEXTS and plan.reused_shard is None:  # left out, and its reason still holds
        current = read_header(plan.shard)
        raise DataError("left out" if current is None else current.left_out)
    if plan.reused_shard is None and not plan.path.is_file():
        raise DataError(f"{plan.path.name}: not there any more")
    row_shapes = feature_shapes(encoders.spec, plan.clips[0].seconds)
    shapes = {name: (len(plan.clips), *shape) for name, shape in row_shapes.items()}
    with open_shard_writer(plan.shard, header, shapes) as writer:
        if plan.reused_shard is None:
            with Progress(len(plan.clips), f"{header.video}, by clip", inner=True) as counter:

                def write_row(name: str, index: int, row: Tensor) -> None:
                    writer.write_row(name, index, row)
                    counter.advance(name == "std")  # a clip's last row but for the caption's

                encode_clips(plan.path, plan.clips, encoders, write_row)
        else:
            _copy_video_rows(plan.reused_shard, writer.write_row)
            encode_captions(plan.clips, encoders, writer.write_row)


def _copy_video_rows(shard: Path, write_row: WriteRow) -> None:
    """Pass all rows of a shard, except those of the text features, to `write_row`."""
    with safe_open(shard, "pt") as file:
        for name in FEATURE_NAMES:
            if name != "text_features":
                rows = file.get_slice(name)
                for index in range(rows.get_shape()[0]):
                    write_row(name, index, rows[index])
