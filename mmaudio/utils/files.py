"""Atomic writes, and reading of text files and tables with one-line errors."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmaudio.errors import DataError, MMAudioError


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`, renamed to `target` at the end of the block or removed if it fails.

    Raises MMAudioError where the system refuses to write.
    """
    temporary = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise unwritable_error(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def unwritable_error(target: Path, error: OSError) -> MMAudioError:
    """The error for a file `target` that cannot be written."""
    reason = error.strerror or str(error)
    return MMAudioError(f"{target}: cannot be written ({reason}); make room there, or choose another place")


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark; DataError if it cannot be read or decoded."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def table_columns(path: Path, text: str, delimiter: str) -> list[str]:
    """Column names in the first line of the table `text`; DataError for invalid CSV."""
    return next((cells for _, cells in _lines(path, text, delimiter)), [])


def table_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield line number and cells by column of every row below the first line of the table `text`; None: no cell.

    DataError with the line number for an unclosed quote, or for more cells than columns.
    """
    lines = _lines(path, text, delimiter)
    _, columns = next(lines, (0, []))
    for number, cells in lines:
        if any(cells[len(columns) :]):
            name = {"\t": "tab", ",": "comma"}.get(delimiter, delimiter)
            raise DataError(
                f"{path}, line {number}: more cells than the first line names columns; a text with a {name} in it "
                'stands in "quotes"'
            )
        if cells:
            yield number, {**dict.fromkeys(columns), **dict(zip(columns, cells, strict=False))}


def _lines(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            yield reader.line_num, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f'{path}, line {start}: {error}; a text with a quote in it stands in "quotes", the quote doubled ("")'
        ) from error
