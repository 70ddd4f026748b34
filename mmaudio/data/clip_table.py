"""The table of clips and the table of what was left out, as tab-separated files.

`clips.tsv` has a row per clip, `clips.left_out.tsv` beside it a row per video or window that is not used. Both are
written only where their content changed. Rows that were edited by hand are used, with a note. Control characters in
names and captions are escaped (`utils.escapes`).
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import math
import sys
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TypeVar

from mmaudio.data.clips import SPLITS, Clip, LeftOut
from mmaudio.data.table_checksums import describe_changes, is_changed, write_checksums
from mmaudio.errors import ConfigError, DataError
from mmaudio.utils.checkout import command_words
from mmaudio.utils.escapes import decode_cell, encode_cell
from mmaudio.utils.files import atomic_write, read_text, table_columns, table_rows
from mmaudio.utils.terminal import print_lines

REQUIRED_NUMBERS = ("start", "end", "peak_db", "rms_db", "silence")
OPTIONAL_NUMBERS = ("lufs", "clipped", "black", "frozen", "mismatch", "speech", "music")
"""Measurements that may be empty: a table made by hand need not have them."""
STREAM_NUMBERS = ("track", "video_track", "channel")
"""Numbers of streams and of a channel, each of which may be empty."""
MAX_GAIN_DB = 200.0
"""Beyond every gain that can be meant; float32 still holds the factor."""
Row = TypeVar("Row", Clip, LeftOut)


def check_table_path(path: Path) -> None:
    """ConfigError where `path` is not the name of a table, or another kind of file is there that would be lost."""
    expected = "--output_tsv takes a name such as lora_data/clips.tsv"
    if path.suffix != ".tsv" or path.is_dir():
        raise ConfigError(f"{path}: no name of a table; {expected}")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if not file.read(64).removeprefix(BOM_UTF8).startswith(b"id\tvideo\t"):
                raise ConfigError(f"{path}: is there already and no table of clips, so it stays; {expected}")


def left_out_path(clips_tsv: Path) -> Path:
    """Path of the table of what was left out, beside the table of clips."""
    return clips_tsv.with_suffix(".left_out.tsv")


def write_clips(path: Path, clips: list[Clip]) -> bool:
    """Write the table; False where the file has the same content already and stays untouched.

    A table that was edited since it was written is kept under another name, with a note.
    """
    if is_changed(path) and path.read_bytes() != _table_content(Clip, clips):
        names = (path.with_suffix(f".edited-{number}.tsv") for number in itertools.count(1))
        edited_path = next(name for name in names if not name.exists())
        path.replace(edited_path)
        _print_note(f"{path} was edited since it was written; that table is kept as {edited_path.name}")
    is_written = _write_table(path, Clip, clips)
    write_checksums(path, _parse_clips(path))
    return is_written


def write_left_out(path: Path, rows: list[LeftOut]) -> bool:
    """Write the table of what was left out; False where the file has the same content already and stays untouched."""
    return _write_table(path, LeftOut, rows)


def read_clips(path: Path) -> list[Clip]:
    """The clips of a table; DataError that names the line where one is not valid."""
    clips = _parse_clips(path)
    if len({clip.id for clip in clips}) < len(clips):
        raise DataError(f"{path}: an id stands there twice; every clip needs its own")
    if changes := describe_changes(path, clips):
        _print_note(
            f"{path} is not as it was written: of its rows {changes}. They are used as they are; if nobody edited the "
            "table, it is damaged: split the videos again"
        )
    return clips


@functools.cache
def _print_note(text: str) -> None:
    """Print a note on standard error, once."""
    print_lines(f"note: {text}", file=sys.stderr, flush=True)


def videos_outside(clips: Sequence[Clip]) -> list[str]:
    """The clips' videos that are outside of the folder of videos: absolute, or with `..`.

    Links within the folder are its owner's, and are followed.
    """
    return [clip.video for clip in clips if Path(clip.video).is_absolute() or ".." in Path(clip.video).parts]


def check_videos_inside(path: Path, clips: list[Clip]) -> None:
    """DataError where a clip of the table `path` names a video outside of the folder of videos."""
    outside = videos_outside(clips)
    if outside:
        raise DataError(
            f"{path}: {len(outside)} clips are of videos outside of the folder of videos, as {outside[0]}; paths below "
            "it are expected. If you know them, add --allow-outside"
        )


def read_left_out(path: Path) -> list[LeftOut]:
    """The rows of a table of left-out files and windows, none where there is no such file."""
    if not path.is_file():
        return []
    return [
        LeftOut(row["video"], row["reason"], *(float(row[name]) if row[name] else None for name in ("start", "end")))
        for _, row in _read_rows(path, LeftOut)
    ]


def _parse_clips(path: Path) -> list[Clip]:
    return [_parse_clip(path, number, row) for number, row in _read_rows(path, Clip)]


def _parse_clip(path: Path, number: int, row: dict[str, str]) -> Clip:
    try:
        start, end, peak_db, rms_db, silence = (float(row[name]) for name in REQUIRED_NUMBERS)
        optional = {name: float(row[name]) for name in (*OPTIONAL_NUMBERS, "gain_db") if row.get(name)}
        numbers = {name: int(row[name]) for name in STREAM_NUMBERS if row.get(name)}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}, line {number}: {error}") from error
    if not abs(optional.get("gain_db", 0.0)) <= MAX_GAIN_DB:  # NaN, too
        raise DataError(
            f"{path}, line {number}: gain_db {row['gain_db']}: expected nothing, or decibels from -{MAX_GAIN_DB:g} to "
            f"{MAX_GAIN_DB:g}"
        )
    if row["split"] not in SPLITS or not 0 <= start < end < math.inf:
        raise DataError(f"{path}, line {number}: split {row['split']!r}, {start} to {end} s makes no sense")
    if min(numbers.values(), default=0) < 0:
        raise DataError(f"{path}, line {number}: tracks and channels are counted from 0")
    if not row["id"] or not row["video"]:
        raise DataError(f"{path}, line {number}: every clip needs an id and a video")
    return Clip(
        row["id"],
        row["video"],
        start,
        end,
        row["caption"],
        row["split"],
        peak_db,
        rms_db,
        silence,
        **optional,
        track=numbers.get("track", 0),
        video_track=numbers.get("video_track"),
        channel=numbers.get("channel"),
        breaks=row.get("breaks") or "",
        notes=row.get("notes") or "",
    )


def _read_rows(path: Path, row_type: type[Row]) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells by column of every row."""
    if not path.is_file():
        raise DataError(f"{path}: not there; split the videos first ({' '.join(command_words('split'))})")
    text = read_text(path)
    columns = table_columns(path, text, "\t")
    required = [field.name for field in fields(row_type) if row_type is LeftOut or field.default is MISSING]
    absent = [name for name in required if name not in columns]
    if absent:
        raise DataError(f"{path}: no column {', '.join(absent)}; split the videos again")
    return [(number, _require_all_cells(path, number, row)) for number, row in table_rows(path, text, "\t")]


def _require_all_cells(path: Path, number: int, row: dict[str, str | None]) -> dict[str, str]:
    """`row` where it has a cell for every column."""
    cells = {name: decode_cell(cell) for name, cell in row.items() if cell is not None}
    if len(cells) < len(row):
        raise DataError(f"{path}, line {number}: fewer cells than the first line names columns")
    return cells


def _format_cell(cell: object) -> object:
    return encode_cell(cell) if isinstance(cell, str) else "" if cell is None else cell


def _table_content(row_type: type[Row], rows: list[Row]) -> bytes:
    text = io.StringIO()
    columns = [field.name for field in fields(row_type)]
    writer = csv.DictWriter(text, columns, dialect="excel-tab", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _format_cell(cell) for name, cell in asdict(row).items()} for row in rows)
    return text.getvalue().encode()


def _write_table(path: Path, row_type: type[Row], rows: list[Row]) -> bool:
    content = _table_content(row_type, rows)
    if path.is_file() and path.read_bytes() == content:
        return False
    with atomic_write(path) as partial:
        partial.write_bytes(content)
    return True
