"""Checksums of a table of clips, in a file beside it: `clips.checksums.json` for `clips.tsv`.

A table may be edited by hand, which is no damage: rows that are not as they were written are described, and used.
A table without such a file, of version 0.1.0 or made by hand, is not checked.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmaudio.data.clips import Clip
from mmaudio.utils.files import atomic_write

MAX_IDS_SHOWN = 3
"""Rows that a description names."""


def checksums_path(table: Path) -> Path:
    """Path of the checksums, beside the table."""
    return table.with_suffix(".checksums.json")


def write_checksums(table: Path, clips: Sequence[Clip]) -> None:
    """Write the checksums of a table that has just been written; `clips` are its rows as they are read."""
    sums = {"sha256": _sha256(table), "rows": {clip.id: _row_sum(clip) for clip in clips}}
    if _read(table) != sums:
        with atomic_write(checksums_path(table)) as partial:
            partial.write_text(json.dumps(sums), encoding="utf-8")


def is_changed(table: Path) -> bool:
    """Whether the table is not as it was written, by hand or by damage; False where that is unknown."""
    sums = _read(table)
    return bool(sums) and table.is_file() and sums["sha256"] != _sha256(table)


def describe_changes(table: Path, clips: Sequence[Clip]) -> str:
    """Which of the rows, read as `clips`, are not as they were written; empty for none, and where that is unknown."""
    if not is_changed(table):
        return ""
    written = _read(table)["rows"]
    different = [clip.id for clip in clips if written.get(clip.id, _row_sum(clip)) != _row_sum(clip)]
    new = [clip.id for clip in clips if clip.id not in written]
    missing = sorted(written.keys() - {clip.id for clip in clips})
    groups = {"differ": different, "are new": new, "are gone": missing}
    return "; ".join(f"{len(ids)} {kind} ({_list_first(ids)})" for kind, ids in groups.items() if ids)


def _list_first(ids: Sequence[str]) -> str:
    return ", ".join(ids[:MAX_IDS_SHOWN]) + (", ..." if len(ids) > MAX_IDS_SHOWN else "")


def _read(table: Path) -> dict[str, Any]:
    """The checksums; empty where there are none, or where they are themselves damaged."""
    with suppress(OSError, ValueError):
        sums = json.loads(checksums_path(table).read_text(encoding="utf-8"))
        if isinstance(sums, dict) and isinstance(sums.get("rows"), dict) and "sha256" in sums:
            return sums
    return {}


def _sha256(table: Path) -> str:
    return hashlib.sha256(table.read_bytes()).hexdigest()


def _row_sum(clip: Clip) -> str:
    """Eight hexadecimal digits for the values of a row, however they are written."""
    return f"{zlib.crc32(json.dumps(asdict(clip)).encode()):08x}"
