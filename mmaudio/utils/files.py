"""Writing files so that one that exists is whole, and saying in one line why one cannot be read or written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmaudio.errors import DataError, MMAudioError


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A temporary name beside `target` that becomes it when the block ends, and is removed when it fails.

    Raises MMAudioError for what the system has against writing there.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def unwritable(target: Path, error: OSError) -> MMAudioError:
    """What to raise where the system lets nobody write `target`."""
    reason = error.strerror or str(error)
    return MMAudioError(f"{target}: cannot be written ({reason}); make room there, or choose another place")


def read_text(path: Path) -> str:
    """The text of a file, with or without a byte order mark; DataError where it cannot be read or is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def table_columns(path: Path, text: str, delimiter: str) -> list[str]:
    """The columns that the first line of the table `text` names; DataError where it is no table."""
    return next((cells for _, cells in _lines(path, text, delimiter)), [])


def table_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Line number and cells by column of every row of the table `text` below its first line, None for absent cells.

    DataError that names the line for a row with a quote that is not closed, or with more cells than there are columns.
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
