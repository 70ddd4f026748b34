"""Metrics of a run: `metrics.jsonl` for programs, and the trackers, of which TensorBoard is one.

tensorboard --logdir output/<exp_id>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmaudio.lora.checkpoint import write_synced
from mmaudio.utils.files import unwritable_error
from mmaudio.utils.trackers import DEFAULT_TRACKERS, TensorBoard, TrackedRun, open_trackers

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Scalars by step; entries of steps after the run's `last_step` are removed when it is opened.

    Such entries are of a run that was cut off: the run that resumes does those steps again. Raises MMAudioError where
    the folder cannot be written, and where a tracker refuses.
    """

    def __init__(self, run: TrackedRun, trackers: Sequence[str] = DEFAULT_TRACKERS) -> None:
        self.trackers = open_trackers(trackers, run)
        run.folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = run.folder, run.folder / METRICS_FILE
        truncate_after(self.path, run.last_step)

    @property
    def writer(self) -> SummaryWriter | None:
        """TensorBoard's writer, for images and audio; None without TensorBoard."""
        return next((tracker.writer for tracker in self.trackers if isinstance(tracker, TensorBoard)), None)

    def write(self, step: int, scalars: dict[str, float], extra: dict[str, Any] | None = None) -> None:
        """Add one line of metrics; `extra` goes to the JSONL file alone."""
        for tracker in self.trackers:
            tracker.add_scalars(scalars, step)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **scalars, **(extra or {})}) + "\n")
        except OSError as error:
            raise unwritable_error(self.path, error) from error

    def close(self) -> None:
        """Write what the trackers still buffer."""
        try:
            for tracker in self.trackers:
                tracker.close()
        except OSError as error:
            raise unwritable_error(self.folder, error) from error


def truncate_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and lines that cannot be parsed."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        write_synced(path, b"".join(line for line in lines if _is_complete_until(line, step)))


def _is_complete_until(line: bytes, step: int) -> bool:
    """True for a whole line, of a step up to `step`."""
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
    except (ValueError, TypeError, KeyError):
        return False
