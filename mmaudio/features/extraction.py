"""From the table of clips to feature shards, one source video after the other.

A shard is redone only where what it was made from changed: the source file, the windows, the encoders' weights; where
only captions changed, the text features alone. A kill loses at most the video in work. Several processes on one folder
share the work: each takes what none has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open

from mmaudio.data.clips import LeftOut, read_clips
from mmaudio.data.feature_store import TENSORS, read_header, shard_writer, write_shard
from mmaudio.data.scan import fingerprint
from mmaudio.data.shard_writer import sweep
from mmaudio.errors import DataError
from mmaudio.features.encoders import PARTS, Encoders, load_encoders
from mmaudio.features.extraction_plan import EVERYTHING, NOTHING, TEXTS, Job, plan, unfounded
from mmaudio.features.video_features import encode_captions, encode_clips, row_shapes
from mmaudio.utils.locks import Claims

EARLY = 64
"""At most so many captions are encoded before all else, so that the text tower need not stay; more would be lost in a
kill."""


@dataclass
class ExtractionReport:
    """What extraction did, in videos."""

    valid: int = 0
    """Shards that needed nothing."""
    texts: int = 0
    """Shards whose captions alone were encoded again."""
    made: int = 0
    others: int = 0
    """Shards that other processes made meanwhile."""
    clips: int = 0
    """Clips with features, those of valid shards included."""
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True)
class Extraction:
    """How features are made, besides what of."""

    model: str
    weights: Path | None = None
    """Folder of the weights."""
    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    """What the transformers compute in; None: bfloat16 on a GPU, else float32."""
    exact: bool = False
    """Whether what is there must have been computed in `dtype`, too."""
    share: tuple[int, int] = (0, 1)
    """Rank and number of processes: each begins with another part of the videos."""
    verify: bool = False
    """Look through the values of all shards, and make those anew that are not finite."""


def extract(
    clips_tsv: Path,
    root: Path,
    out_dir: Path,
    how: Extraction,
    progress: Callable[[list[Job]], Iterable[Job]] = iter,
    found: Callable[[list[Job]], None] = lambda jobs: None,
) -> ExtractionReport:
    """Make the feature shards of the table's videos (below `root`) in `out_dir`.

    `found` gets what there is to do before it is done. A video that cannot be used is left out with the reason. Raises
    DataError for an unusable table and where no clip gets features, MMAudioError where nothing can be written.
    """
    precision = str(how.dtype).removeprefix("torch.") if how.exact else ""
    jobs = plan(read_clips(clips_tsv), root, out_dir, how.model, how.weights, precision, how.verify)
    todo = [job for job in jobs if job.todo != NOTHING]
    report = ExtractionReport(valid=len(jobs) - len(todo))
    found(todo)
    if todo:
        _share(todo, how, out_dir, report, progress)
    for job in jobs:
        header = read_header(job.shard)
        if header is None:
            raise DataError(f"{job.shard}: gone while others were made; the same command makes it again")
        if header.left_out:
            report.left_out.append(LeftOut(header.video, header.left_out))
        else:
            report.clips += len(header.clip_ids)
    if jobs and not report.clips:
        raise DataError(f"{clips_tsv}: no clip could be used; {report.left_out[0].video}: {report.left_out[0].reason}")
    return report


def _share(
    todo: list[Job],
    how: Extraction,
    out_dir: Path,
    report: ExtractionReport,
    progress: Callable[[list[Job]], Iterable[Job]],
) -> None:
    """Do the jobs that no other process does: this one's part first, longest first, then what else is left."""
    rank, processes = how.share
    own = todo[rank::processes]
    with Claims(out_dir) as claims:
        sweep(out_dir)
        encoders = _encoders(todo, how)
        busy = []
        for job in progress(own + [job for job in todo if job not in own]):
            if claims.take(job.shard.name):
                _work(job, encoders, report)
                claims.release(job.shard.name)
            else:
                busy.append(job)
        for job in busy:  # in work elsewhere: done when the claim is free, or left undone by a kill
            claims.take(job.shard.name, wait=True)
            _work(job, encoders, report)
            claims.release(job.shard.name)


def _encoders(todo: list[Job], how: Extraction) -> Encoders:
    parts = tuple(PARTS) if any(job.todo == EVERYTHING for job in todo) else ("clip",)
    encoders = load_encoders(how.model, how.weights, how.device, parts, how.dtype)
    captions = dict.fromkeys(clip.caption for job in todo for clip in job.clips)
    if len(captions) <= EARLY:
        encoders.only_texts(captions)
    return encoders


def _work(job: Job, encoders: Encoders, report: ExtractionReport) -> None:
    """Write the shard of one video, or why it is left out, unless another process has."""
    if job.made_meanwhile():
        report.others += 1
        return
    header = replace(job.wanted, precision=str(encoders.dtype).removeprefix("torch."))
    shapes = {name: (len(job.clips), *row) for name, row in row_shapes(encoders.spec, job.clips[0].seconds).items()}
    try:
        if job.todo == TEXTS and job.donor is None:  # left out, for a reason that still holds
            present = read_header(job.shard)
            raise DataError("left out" if present is None else present.left_out)
        if job.donor is not None:
            donated = read_header(job.donor)
            header = replace(header, precision=header.precision if donated is None else donated.precision)
        elif not job.path.is_file():
            raise DataError(f"{job.path.name}: not there any more")
        with shard_writer(job.shard, header, shapes) as writer:
            if job.donor is not None:
                _copy_rows(job.donor, writer.put)
                encode_captions(job.clips, encoders, writer.put)
            else:
                encode_clips(job.path, job.clips, encoders, writer.put)
    except DataError as error:
        reason = str(error).removeprefix(f"{job.path.name}: ")
        if fingerprint(job.path) != job.wanted.source:  # it changed or went away: no reason for the next run
            header = unfounded(header)
        write_shard(job.shard, replace(header, left_out=reason), None)
    if job.todo == TEXTS:
        report.texts += 1
    else:
        report.made += 1


def _copy_rows(shard: Path, put: Callable[[str, int, torch.Tensor], None]) -> None:
    """Hand all rows of a shard but the text's to `put`."""
    with safe_open(shard, "pt") as file:
        for name in TENSORS:
            if name != "text_features":
                rows = file.get_slice(name)
                for number in range(rows.get_shape()[0]):
                    put(name, number, rows[number])
