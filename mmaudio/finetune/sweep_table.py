"""The table that a sweep prints at its end: its runs by validation loss."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mmaudio.finetune.loop import TrainingResult


def format_sweep_table(results: Sequence[TrainingResult]) -> list[str]:
    """A sweep's runs by the settings that differ, the lowest validation loss first, and the folder of that one."""
    results = sorted(results, key=lambda result: result.best_loss)
    rows = [("run", "steps", "base", "best", "at step", "change")]
    for name, result in zip(_differing_settings([result.folder.name for result in results]), results, strict=True):
        numbers = (str(result.step), f"{result.base_loss:.4f}", f"{result.best_loss:.4f}", str(result.best_step))
        rows.append((name, *numbers, "" if result.change is None else str(result.change)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*table, f"lowest loss: {results[0].folder}"] if math.isfinite(results[0].best_loss) else table


def _differing_settings(names: Sequence[str]) -> list[str]:
    """Names of the form `key=value,key=value` without the pairs that all have; whole where nothing would be left."""
    settings = [re.split(r",(?=[\w.+~-]+=)", name) for name in names]
    shared = set(settings[0]).intersection(*settings)
    short_names = [",".join(pair for pair in pairs if pair not in shared) for pairs in settings]
    return short_names if all(short_names) else list(names)
