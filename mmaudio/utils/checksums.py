"""Checksums of files, cached on disk for large files until size or modification time changes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmaudio.errors import MMAudioError
from mmaudio.utils.files import atomic_write
from mmaudio.utils.heartbeat import Heartbeat

MIN_CACHED_BYTES = 1 << 25
"""Checksums of smaller files are not cached."""
MIN_AGE_SECONDS = 2.0
"""Age of a file from which on its checksums are cached: a second write within one tick of the clock keeps the time."""
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileDigests:
    """Checksums of a file, in hexadecimal."""

    sha256: str
    md5: str


def file_digests(path: Path, cache: Path | None = None) -> FileDigests:
    """Compute the checksums of a file, or read them from the folder `cache` if size, time and inode are unchanged."""
    status = path.stat()
    age = time.time() - status.st_mtime
    if cache is None or status.st_size < MIN_CACHED_BYTES:
        return _read(path)
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    cache_file, stamp = cache / f"{name}.json", [status.st_size, status.st_mtime_ns, status.st_ino]
    with suppress(OSError, ValueError, KeyError, TypeError):
        cached = json.loads(cache_file.read_text())
        if cached["stamp"] == stamp:
            return FileDigests(cached["sha256"], cached["md5"])
    with Heartbeat(f"{path.name}: computing its checksums"):
        computed = _read(path)
    if age > MIN_AGE_SECONDS:
        with suppress(MMAudioError), atomic_write(cache_file) as temporary:  # caching is optional
            temporary.write_text(json.dumps({"file": str(path.resolve()), "stamp": stamp, **asdict(computed)}))
    return computed


def _read(path: Path) -> FileDigests:
    """Both checksums; those of a large file side by side, as each takes seconds for a gigabyte."""
    if path.stat().st_size < MIN_CACHED_BYTES:
        return FileDigests(_hexdigest(path, hashlib.sha256()), _hexdigest(path, hashlib.md5(usedforsecurity=False)))
    with ThreadPoolExecutor(1, "checksum") as pool:
        md5 = pool.submit(_hexdigest, path, hashlib.md5(usedforsecurity=False))
        return FileDigests(_hexdigest(path, hashlib.sha256()), md5.result())


def _hexdigest(path: Path, digest: Any) -> str:
    """The hexadecimal checksum of a file by a new object of hashlib."""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return str(digest.hexdigest())


def find_damage(path: Path) -> str:
    """Describe the damage of a file that torch.save wrote, by its internal checksums; empty for an intact file.

    Files from before torch 1.6 have no checksums and pass.
    """
    try:
        if not zipfile.is_zipfile(path):
            return ""
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                return "the parts within are larger than the file"  # torch compresses nothing
            damaged_member = archive.testzip()
    except (OSError, EOFError, NotImplementedError, ValueError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        return str(error) or type(error).__name__
    return f"the checksum of {damaged_member} within is wrong" if damaged_member else ""


def move_aside(path: Path, target: Path, md5: str) -> Path:
    """Rename a corrupt file to `TARGET.corrupt-MD5` beside `target`; the new path."""
    new_path = target.with_name(f"{target.name}.corrupt-{md5[:8]}")
    path.replace(new_path)
    return new_path
