"""Atomic writes, and reading of text files and tables with one-line errors."""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import io
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmaudio.errors import DataError, MMAudioError

ABANDONED_SECONDS = 3600.0
"""A temporary file that was not written to for so long is left from a process that was killed."""
TEMPORARY_NAME = re.compile(r"\.(?:([0-9a-f]{8})-(\d+)\.)?[0-9a-f]{8}\.part$")
"""The end of a temporary file's name: the machine and the process that writes it, and a random number."""
MAX_STEM = 40
"""Characters of a file's name in that of its temporary file; file systems allow 255 bytes in all."""


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`, renamed to `target` at the end of the block or removed if it fails.

    Its name is this writer's alone, so that processes may write the same file: the last one wins. The file gets the
    permissions that the umask says, whichever those of the temporary file are at the end: some libraries put a file of
    their own in its place. Raises MMAudioError where the system refuses to write.
    """
    temporary = temporary_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean_once(target.parent)
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        temporary.replace(target)
    except Exception as error:  # raised again: of any library it may be a full disk
        _raise_refusal(target, error)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`, which takes its place at the end of the block; removed if that fails.

    There is no `target` for a moment. Raises MMAudioError where the system refuses to write.
    """
    temporary = temporary_path(target)
    try:
        temporary.mkdir(parents=True)
        _clean_once(target.parent)
        yield temporary
        while not _replace_folder(temporary, target):
            pass
    except Exception as error:  # as above
        _raise_refusal(target, error)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, target: Path) -> bool:
    """Move `temporary` to `target`; False where another process has just put its own there."""
    replaced = temporary_path(target)
    try:
        with suppress(FileNotFoundError):
            target.replace(replaced)
        temporary.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        shutil.rmtree(replaced, ignore_errors=True)
    return True


def temporary_path(target: Path) -> Path:
    """A name beside `target` that no other writer has."""
    writer = f"{machine_digits()}-{os.getpid()}"
    return target.with_name(f".{target.name[:MAX_STEM]}.{writer}.{uuid.uuid4().hex[:8]}.part")


@functools.cache
def machine_digits() -> str:
    """Eight digits for this machine and its numbering of processes, which changes with a start or in a container."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        start = str(uuid.getnode())
    return hashlib.sha256(f"{socket.gethostname()}\n{start}".encode()).hexdigest()[:8]


def _is_writer_gone(machine: str | None, pid: str | None) -> bool:
    """Whether the process that a temporary file's name tells has ended; False where that cannot be known."""
    if machine != machine_digits() or pid is None:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # of another user, or no number of a process
        return False
    return False


def remove_abandoned_files(folder: Path, min_age: float = ABANDONED_SECONDS) -> None:
    """Remove temporary files and folders of processes that were killed.

    Those of a process of this machine go at once, others `min_age` seconds after they were last written to.
    """
    for path in folder.glob(".*.part"):
        name = TEMPORARY_NAME.search(path.name)
        if name is None:
            continue
        with suppress(OSError):  # another process has just finished or removed it
            if _is_writer_gone(*name.groups()) or time.time() - path.stat().st_mtime >= min_age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@functools.cache
def _clean_once(folder: Path) -> None:
    remove_abandoned_files(folder)


def _raise_refusal(target: Path, error: Exception) -> None:
    """Raise MMAudioError where `error`, which ended the writing of `target`, is a refusal of the system.

    Libraries in Rust, such as safetensors, have errors of their own with the system's number in the text.
    """
    number = re.search(r"\(os error (\d+)\)", str(error))
    if isinstance(error, OSError):
        raise unwritable_error(target, error) from error
    if number is not None and not isinstance(error, MMAudioError):
        code = int(number.group(1))
        raise unwritable_error(target, OSError(code, os.strerror(code))) from error


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
