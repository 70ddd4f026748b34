"""Metrics of a run on disk: TensorBoard event files, and `metrics.jsonl` for programs.

tensorboard --logdir output/<exp_id>
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmaudio.errors import MMAudioError
from mmaudio.lora.checkpoint import write_synced
from mmaudio.utils.files import unwritable_error

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Scalars by step, in both forms; entries of steps after `last_step` are removed when it is opened.

    Such entries are of a run that was cut off: the run that resumes does those steps again. Raises MMAudioError where
    the folder cannot be written, or its name is not UTF-8.
    """

    def __init__(self, folder: Path, last_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

        try:
            str(folder).encode()
        except UnicodeEncodeError as error:
            raise MMAudioError(
                f"{folder}: TensorBoard writes into no folder whose name is not UTF-8; choose another output_dir"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / METRICS_FILE
        truncate_after(self.path, last_step)
        self.writer = SummaryWriter(str(folder), purge_step=last_step + 1)
        """For images, audio and HPARAMS."""

    def write(self, step: int, scalars: dict[str, float], extra: dict[str, Any] | None = None) -> None:
        """Add one line of metrics; `extra` goes to the JSONL file alone."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **scalars, **(extra or {})}) + "\n")
        except OSError as error:
            raise unwritable_error(self.path, error) from error

    def close(self) -> None:
        """Write what TensorBoard's writer still buffers."""
        try:
            self.writer.close()
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
