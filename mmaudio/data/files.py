"""Writing files so that one that exists is whole, and saying in one line why one cannot be read or written."""

from __future__ import annotations

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
