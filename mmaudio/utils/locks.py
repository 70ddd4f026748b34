"""File locks so that several processes share one extraction job, on one machine or through a shared folder.

    with FileLocks(folder) as locks:
        if locks.acquire("a video"):
            ...
            locks.release("a video")
    with wait_for_lock(folder, "the table", "another process writes it"):
        ...

A lock covers one byte of a file in the folder. The system releases it when its process ends. On a file system without
locks, and on Windows, every lock is granted: work may be done twice there, without other harm.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from mmaudio.errors import MMAudioError
from mmaudio.utils.heartbeat import Heartbeat
from mmaudio.utils.terminal import print_lines

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: as on a file system without locks
    fcntl = None

LOCK_FILE = ".claims"
LOCKABLE_BYTES = 1 << 40
"""Byte offsets that can be locked; the file stays empty."""
HELD_ERRORS = (errno.EACCES, errno.EAGAIN)
"""Errors of a lock that another process holds."""
POLL_SECONDS = 0.1
"""Seconds between two attempts to get a lock."""
IS_DARWIN = sys.platform == "darwin"
FLOCK, PID_FIELD = ("qqihh", 2) if IS_DARWIN else ("hhqqi4x", 4)
"""`struct flock` of the system, and the place of the process's id in it."""


class FileLocks:
    """Named locks of this process in `folder`; MMAudioError if the folder cannot be written."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise MMAudioError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error

    def acquire(self, name: str) -> bool:
        """Lock `name`: False if another process holds it."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(name))
        except OSError as error:
            return error.errno not in HELD_ERRORS
        return True

    def wait(self, name: str, reason: str) -> None:
        """Lock `name`; where another process holds it, print `reason` and wait, with a line now and then."""
        if self.acquire(name):
            return
        print_lines(f"{reason}{self.describe_holder(name)}; waiting until it has ended", flush=True)
        with Heartbeat(lambda elapsed: f"{reason}{self.describe_holder(name)}; waiting, {elapsed:.0f} s so far"):
            while not self.acquire(name):
                time.sleep(POLL_SECONDS)

    def describe_holder(self, name: str) -> str:
        """` (process 123)`, the holder of the lock `name`; empty where the system cannot tell, as across a network."""
        if fcntl is None:
            return ""
        query = struct.pack(FLOCK, *_flock_fields(_offset(name)))
        try:
            answer = struct.unpack(FLOCK, fcntl.fcntl(self._file, fcntl.F_GETLK, query))
        except OSError:
            return ""
        pid = answer[PID_FIELD]
        return f" (process {pid})" if pid > 0 else ""

    def release(self, name: str) -> None:
        """Unlock `name`."""
        if fcntl is None:
            return
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
        locks.wait(name, reason)
        yield


def _flock_fields(offset: int) -> tuple[int, ...]:
    """The fields of `struct flock` for an exclusive lock of the byte at `offset`."""
    if IS_DARWIN:
        return offset, 1, 0, fcntl.F_WRLCK, os.SEEK_SET
    return fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0


def _offset(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % LOCKABLE_BYTES
