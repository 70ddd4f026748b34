"""The table of a folder of generated audio: what each file was made from.

    table = GenerationTable(folder, describe)
    table.find_changes(job)    # "" where its files are as they would be now
    table.record(job, seeds)

`generation.tsv` has a row per file. A later run makes only what is missing or would be different now.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmaudio.errors import DataError
from mmaudio.generation.jobs import Job
from mmaudio.utils.checksums import file_digests
from mmaudio.utils.escapes import decode_cell, encode_cell
from mmaudio.utils.files import atomic_write, read_text, table_columns, table_rows

FILE_NAME = "generation.tsv"
INPUTS = ("video", "prompt", "seed", "adapter", "strength")
"""Columns of what a user chooses most often; the other settings are in one column, as JSON."""
LABELS = {"first_seed": "seed", "video_file": "video", "adapter_files": "adapter", "base": "base model"}
"""Names of settings in messages, where they differ."""
COLUMNS = (*INPUTS, "settings", "output", "sha256")


class GenerationTable:
    """The rows of the table in `folder`, by file."""

    def __init__(self, folder: Path, describe: Callable[[Job], dict[str, Any]]) -> None:
        """`describe`: what a job's samples are made from, by setting."""
        self.path, self.describe = folder / FILE_NAME, describe
        self.rows: dict[str, dict[str, str]] = {}
        with suppress(DataError):  # none yet, or somebody else's
            text = read_text(self.path)
            if set(COLUMNS) <= set(table_columns(self.path, text, "\t")):
                for _, cells in table_rows(self.path, text, "\t"):
                    row = {column: decode_cell(cells[column] or "") for column in COLUMNS}
                    self.rows[row["output"]] = row

    def find_changes(self, job: Job) -> str | None:
        """What is different now from when a job's files were made: empty for nothing; None for files of no row.

        Raises DataError where a file that would be replaced was edited since.
        """
        changes: dict[str, None] = {}
        settings = _read_cells(_write_cells(self.describe(job)))
        for path in [path for paths in job.outputs.by_sample for path in paths if path.exists()]:
            row = self.rows.get(path.name)
            if row is None:
                return None
            changes |= dict.fromkeys(_differences(_read_cells(row), settings))
        if changes or len(job.outputs.existing) < len(job.outputs.paths):
            self._check_unedited(job)
        return ", ".join(changes)

    def record(self, job: Job, seeds: Sequence[int]) -> None:
        """Write the rows of a job whose samples have just been written; rows of files that are gone are dropped."""
        settings = self.describe(job)
        for paths, seed in zip(job.outputs.by_sample, seeds, strict=True):
            for path in paths:
                digest = {"output": path.name, "sha256": file_digests(path).sha256}
                self.rows[path.name] = _write_cells(settings | {"seed": seed}) | digest
        self.rows = {name: row for name, row in self.rows.items() if self.path.with_name(name).exists()}
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([encode_cell(self.rows[name][column]) for column in COLUMNS] for name in sorted(self.rows))
        with atomic_write(self.path) as temporary:
            temporary.write_text(buffer.getvalue(), encoding="utf-8")

    def _check_unedited(self, job: Job) -> None:
        for path in [path for paths in job.outputs.by_sample for path in paths if path.exists()]:
            if file_digests(path).sha256 != self.rows[path.name]["sha256"]:
                raise DataError(f"{path} was edited since it was generated; --overwrite replaces it")


def _write_cells(settings: Mapping[str, Any]) -> dict[str, str]:
    cells = {name: "" if settings.get(name) is None else str(settings[name]) for name in INPUTS}
    others = {name: value for name, value in settings.items() if name not in INPUTS}
    return cells | {"settings": json.dumps(others, ensure_ascii=False, sort_keys=True)}


def _read_cells(row: Mapping[str, str]) -> dict[str, Any]:
    others: dict[str, Any] = {}
    with suppress(ValueError):  # edited by hand
        others = json.loads(row["settings"])
    return {name: row[name] for name in INPUTS if name != "seed"} | others  # that of the first sample is among them


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed, as `prompt` or `steps`."""
    return [LABELS.get(name, name) for name in {**old, **new} if old.get(name) != new.get(name)]
