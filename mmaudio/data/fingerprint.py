"""Fingerprint of a large file that is fast to compute and changes with its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

EDGE_BYTES = 65_536
"""Bytes at a file's head and tail that its fingerprint covers."""


def fingerprint(path: Path) -> str:
    """SHA-256 of size, modification time and both ends of a file; empty where it cannot be read."""
    try:
        status = path.stat()
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
        with path.open("rb") as file:
            if status.st_size:  # else there is nothing to read, or one waits for it, as in /proc
                digest.update(file.read(EDGE_BYTES))
                file.seek(max(0, status.st_size - EDGE_BYTES))
                digest.update(file.read(EDGE_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()
