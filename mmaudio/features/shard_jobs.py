"""Shards in work: several videos are read at once, their windows encoded as they come, and their rows written beside.

The readers are threads. A video's windows are encoded in the same batches whichever videos are read beside it, so that
a shard has the same content for any number of readers. Memory: QUEUED_BATCHES batches wait for the encoders, beside one
finished and one begun in each reader; a batch is one window on a CPU and `GPU_WINDOWS` on a GPU. A window of 8 s takes
58 MB at the released sizes, less where windows overlap. A killed run loses at most the videos that are being read and
those whose last batches wait.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from mmaudio.data.feature_set import FEATURE_NAMES
from mmaudio.data.feature_store import open_shard_writer, read_header, write_shard
from mmaudio.data.fingerprint import fingerprint
from mmaudio.data.shard_writer import ShardWriter
from mmaudio.errors import DataError
from mmaudio.features.encoders import Encoders
from mmaudio.features.extraction_plan import EVERYTHING, TEXTS, ShardPlan, without_source
from mmaudio.features.video_features import (
    ClipBatchEncoder,
    ClipInputs,
    WriteRow,
    encode_captions,
    feature_shapes,
    read_batches,
)
from mmaudio.media.streams import limit_codec_threads
from mmaudio.utils.cores import count_cores
from mmaudio.utils.locks import FileLocks
from mmaudio.utils.memory import free_memory
from mmaudio.utils.producer_threads import SourceEnd, interleave
from mmaudio.utils.progress import Progress

QUEUED_BATCHES = 2
"""Batches that are read while others are being encoded."""
MAX_READERS, CPU_READERS = 8, 2
"""Videos that are read at once for a GPU, and for encoders that need the cores themselves."""
READER_BYTES = 1 << 30
"""Memory that a reader may need."""
EXTRACTED, TEXT_ONLY, BY_OTHERS = "extracted", "text_only", "by_other_processes"
"""What was done with a shard: written, its texts alone written, or written by another process meanwhile."""


@dataclass(frozen=True)
class ReaderThreads:
    """How many videos are read at once, and by how many threads each."""

    readers: int
    codec: int
    """Threads that decode a video. Not by the readers: a file that was cut off ends by them (FFmpeg)."""
    workers: int
    """Threads that convert and resize a video's frames."""


def share_cores(num_videos: int, device: torch.device, readers: int | None = None) -> ReaderThreads:
    """Share the cores out among as many readers as the memory holds, or among `readers`."""
    cores = count_cores()
    by_device = min(MAX_READERS, max(2, cores // 2)) if device.type != "cpu" else CPU_READERS
    by_memory = free_memory(torch.device("cpu")) // READER_BYTES
    count = max(1, min(num_videos, readers or min(by_device, by_memory)))
    return ReaderThreads(count, max(1, cores // max(1, num_videos)), max(1, cores // count))


class ShardJob:
    """One video's shard, from its plan to the complete file; `read` runs in another thread than the rest."""

    def __init__(self, plan: ShardPlan, encoders: Encoders, workers: int, pool: Executor) -> None:
        """`workers` convert the frames of the video; `pool` writes rows."""
        self.plan, self.encoders, self.workers = plan, encoders, workers
        self._header = replace(plan.header, precision=str(encoders.dtype).removeprefix("torch."))
        if plan.reused_shard is not None and (reused_header := read_header(plan.reused_shard)) is not None:
            self._header = replace(self._header, precision=reused_header.precision)
        self._encoder, self._pool = ClipBatchEncoder(encoders), pool
        self._writer: ShardWriter | None = None
        self._writes: Future[None] | None = None
        """Of the rows of the last batch."""
        self.error: DataError | None = None
        """Why the video is left out."""

    def read(self) -> Iterator[list[ClipInputs]]:
        """The video's windows in batches, none where they are not needed."""
        if self.plan.todo == TEXTS and self.plan.reused_shard is None:  # left out, and its reason still holds
            current = read_header(self.plan.shard)
            raise DataError("left out" if current is None else current.left_out)
        if self.plan.reused_shard is None and not self.plan.path.is_file():
            raise DataError(f"{self.plan.path.name}: not there any more")
        if self.plan.reused_shard is None:
            for batch in read_batches(self.plan.path, self.plan.clips, self.encoders, self.workers):
                yield batch
                if self.error is not None:
                    return

    def add(self, batch: list[ClipInputs]) -> None:
        """Encode the next windows; their rows are written meanwhile."""
        if self.error is not None:
            return
        try:
            features = self._encoder.encode(batch)
            self._await_rows()
            self._writes = self._pool.submit(self._encoder.write, features, self._open().write_row)
        except DataError as error:
            self.error = error

    def finish(self, error: DataError | None) -> str:
        """Complete the shard, or write the reason for leaving the video out; EXTRACTED or TEXT_ONLY."""
        try:
            if (known := self.error or error) is not None:
                raise known
            self._write_rest()
        except DataError as reason:
            self.discard()
            self._write_reason(reason)
        return TEXT_ONLY if self.plan.todo == TEXTS else EXTRACTED

    def discard(self) -> None:
        """Remove what is written of a shard that is not complete."""
        if self._writes is not None:
            self._writes.exception()
        if self._writer is not None:
            self._writer.__exit__(DataError, DataError("not complete"), None)
            self._writer = None

    def _await_rows(self) -> None:
        """Wait for the rows that are being written; raises the error of writing them."""
        if self._writes is not None:
            self._writes.result()

    def _open(self) -> ShardWriter:
        if self._writer is None:
            row_shapes = feature_shapes(self.encoders.spec, self.plan.clips[0].seconds)
            shapes = {name: (len(self.plan.clips), *shape) for name, shape in row_shapes.items()}
            self._writer = open_shard_writer(self.plan.shard, self._header, shapes).__enter__()
        return self._writer

    def _write_rest(self) -> None:
        """Write what does not come from the video, and complete the file."""
        self._await_rows()
        writer = self._open()
        if self.plan.reused_shard is not None:
            _copy_video_rows(self.plan.reused_shard, writer.write_row)
        encode_captions(self.plan.clips, self.encoders, writer.write_row)
        writer.__exit__(None, None, None)
        self._writer = None

    def _write_reason(self, error: DataError) -> None:
        header, path = self._header, self.plan.path
        if fingerprint(path) != self.plan.header.source:  # the video changed or was removed: the next run tries again
            header = without_source(header)
        write_shard(self.plan.shard, replace(header, left_out=str(error).removeprefix(f"{path.name}: ")), None)


@dataclass(frozen=True)
class _Start:
    """A plan that a reader has taken, and what is known of it then."""

    plan: ShardPlan
    job: ShardJob | None = None
    """None where there is nothing to do."""
    result: str | None = None
    """BY_OTHERS, or None where another process has the lock."""


def write_shards(
    plans: Sequence[ShardPlan], encoders: Encoders, locks: FileLocks, readers: int | None = None
) -> Generator[tuple[ShardPlan, str | None], None, None]:
    """Write the shards of `plans`; each plan with what was done once it is complete, None where it is locked.

    Videos are begun in the order of `plans`, and their locks released when they are complete.
    """
    threads = share_cores(len(plans), encoders.device, readers)
    num_clips = sum(len(plan.clips) for plan in plans if plan.todo == EVERYTHING)
    in_work: dict[str, ShardJob] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1, "writer"))
        stack.callback(_discard, in_work)
        counter = stack.enter_context(Progress(num_clips, "extracting, by clip", inner=True))
        sources = (_begin(plan, encoders, locks, threads.workers, pool) for plan in plans)
        context = partial(limit_codec_threads, threads.codec)
        for start, item in stack.enter_context(closing(interleave(sources, threads.readers, QUEUED_BATCHES, context))):
            plan, job, result = start.plan, start.job, start.result
            if not isinstance(item, SourceEnd):
                assert job is not None
                in_work[plan.shard.name] = job
                job.add(item)
                counter.advance(len(item))
                continue
            if job is not None:
                if item.error is not None and not isinstance(item.error, DataError):
                    raise item.error
                result = job.finish(item.error)
                in_work.pop(plan.shard.name, None)
            if result is not None:
                locks.release(plan.shard.name)
            yield plan, result


def _discard(in_work: Mapping[str, ShardJob]) -> None:
    """Remove what is written of the shards that are not complete."""
    for job in in_work.values():
        job.discard()


def _begin(
    plan: ShardPlan, encoders: Encoders, locks: FileLocks, workers: int, pool: Executor
) -> tuple[_Start, Iterator[list[ClipInputs]]]:
    """Lock a plan's shard, and begin to read its video where that is necessary."""
    if not locks.acquire(plan.shard.name):
        return _Start(plan), iter(())
    if plan.is_written_since():
        return _Start(plan, result=BY_OTHERS), iter(())
    job = ShardJob(plan, encoders, workers, pool)
    return _Start(plan, job), job.read()


def _copy_video_rows(shard: Path, write_row: WriteRow) -> None:
    """Pass all rows of a shard, except those of the text features, to `write_row`."""
    with safe_open(shard, "pt") as file:
        for name in FEATURE_NAMES:
            if name != "text_features":
                rows = file.get_slice(name)
                for index in range(rows.get_shape()[0]):
                    write_row(name, index, rows[index])
