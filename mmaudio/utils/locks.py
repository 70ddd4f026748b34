"""File locks so that several processes share one extraction job, on one machine or through a shared folder.

    with FileLocks(folder) as locks:
        if locks.acquire("a video"):
            ...
            locks.release("a video")
    with wait_for_lock(folder, "the table", "another process writes it"):
        ...

A lock covers one byte of a file in the folder. The system releases it when its process ends. On a file system without
locks every lock is granted: work may be done twice there, without other harm.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mmaudio.errors import MMAudioError
from mmaudio.utils.terminal import print_lines

LOCK_FILE = ".claims"
LOCKABLE_BYTES = 1 << 40
"""Byte offsets that can be locked; the file stays empty."""
HELD_ERRORS = (errno.EACCES, errno.EAGAIN)
"""Errors of a lock that another process holds."""


class FileLocks:
    """Named locks of this process in `folder`; MMAudioError if the folder cannot be written."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise MMAudioError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error

    def acquire(self, name: str, wait: bool = False) -> bool:
        """Lock `name`: False if another process holds it; with `wait`, block until it is released."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, _offset(name))
        except OSError as error:
            return error.errno not in HELD_ERRORS
        return True

    def release(self, name: str) -> None:
        """Unlock `name`."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _offset(name))
        except OSError:  # a file system without locks
            return

    def __enter__(self) -> FileLocks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


@contextmanager
def wait_for_lock(folder: Path, name: str, reason: str) -> Iterator[None]:
    """Hold the lock `name` of `folder` for the block; where another process holds it, print `reason` and wait.

    A folder that cannot be written needs no lock: what is valid there can still be read.
    """
    try:
        locks = FileLocks(folder)
    except MMAudioError:
        yield
        return
    with locks:
        if not locks.acquire(name):
            print_lines(f"{reason}; waiting until it has ended", flush=True)
            locks.acquire(name, wait=True)
        yield


def _offset(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % LOCKABLE_BYTES
