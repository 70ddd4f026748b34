"""Who works on what: several processes, on one machine or on several that share a folder, each take what none has.

    with Claims(folder) as claims:
        if claims.take("a video"):
            ...
            claims.release("a video")

A claim is a lock on one byte of a file in the folder. The system frees it when its process ends, however that ends.
Where a file system has no locks every claim is granted: work may be done twice then, which harms nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType

from mmaudio.errors import MMAudioError

FILE = ".claims"
PLACES = 1 << 40
"""Bytes of the file that can be locked; it stays empty."""
TAKEN = (errno.EACCES, errno.EAGAIN)


class Claims:
    """The claims of this process on what is made in `folder`; MMAudioError where nothing can be written there."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise MMAudioError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error

    def take(self, name: str, wait: bool = False) -> bool:
        """Claim `name`: False where another process has it; with `wait`, until that lets go."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, _place(name))
        except OSError as error:
            return error.errno not in TAKEN
        return True

    def release(self, name: str) -> None:
        """Let go of `name`."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(name))
        except OSError:  # no locks here
            return

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def _place(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % PLACES
