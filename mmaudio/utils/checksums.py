"""Checksums of files of gigabytes, read once: they are remembered for as long as the file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import zipfile
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

LARGE = 1 << 25
"""Bytes from which on checksums are remembered."""
SETTLED = 2.0
"""Seconds for which a file has to have been left alone: what is written within a clock's tick shows no new time."""
BLOCK = 1 << 20


@dataclass(frozen=True)
class Digests:
    """A file's checksums, in hexadecimal."""

    sha256: str
    md5: str


def digests(path: Path, notes: Path | None = None) -> Digests:
    """The checksums of a file; with a folder of `notes`, those noted there while size and time are still the same."""
    status = path.stat()
    if notes is None or status.st_size < LARGE:
        return _read(path)
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    note, stamp = notes / f"{name}.json", [status.st_size, status.st_mtime_ns, status.st_ino]
    with suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(note.read_text())
        if noted["stamp"] == stamp:
            return Digests(noted["sha256"], noted["md5"])
    found = _read(path)
    if time.time() - status.st_mtime > SETTLED:
        with suppress(OSError):  # a note is a convenience
            notes.mkdir(parents=True, exist_ok=True)
            part = note.with_name(f".{note.name}.{os.getpid()}")
            part.write_text(json.dumps({"file": str(path.resolve()), "stamp": stamp, **asdict(found)}))
            part.replace(note)
    return found


def _read(path: Path) -> Digests:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            md5.update(block)
    return Digests(sha256.hexdigest(), md5.hexdigest())


def damage(path: Path) -> str:
    """What is wrong with a file that torch.save wrote, by the checksums within; empty for a sound one.

    Files of before torch 1.6 have none and pass.
    """
    try:
        if not zipfile.is_zipfile(path):
            return ""
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, EOFError, NotImplementedError, ValueError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        return str(error) or type(error).__name__
    return f"the checksum of {broken} within is wrong" if broken else ""


def set_aside(path: Path, target: Path, md5: str) -> Path:
    """Give a corrupt file a name beside `target` that tells what it is; files set aside before stay."""
    aside = target.with_name(f"{target.name}.corrupt-{md5[:8]}")
    path.replace(aside)
    return aside
