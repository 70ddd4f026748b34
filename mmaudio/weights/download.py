"""Download of one large file over HTTP: resumed, checked by MD5, and fetched once by concurrent processes.

    download("https://host/file.pth", Path("cache/file.pth"), md5="69f5...")

A partial download is `.NAME.part` beside the target; `.NAME.part.tag` holds its version (the server's ETag or time of
last change). If the server has another version, the file is fetched from the beginning.
"""

from __future__ import annotations

import errno
import http.client
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from mmaudio.errors import WeightsError
from mmaudio.utils.checksums import file_digests, move_aside
from mmaudio.utils.progress import format_bytes, progress_bytes, working

RETRY_DELAYS = (1.0, 2.0, 4.0)
"""Seconds before each retry; with all of them used up the download fails."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""
CHUNK_SIZE = 1 << 18
MIN_PROGRESS = 1 << 20
"""Bytes that an attempt has to add for the count of failures to start again."""
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses of temporary failures."""


class RetryableError(Exception):
    """A connection that ended too early, or a busy server."""


@dataclass(frozen=True)
class PartialFile:
    """The partial download of a file."""

    path: Path
    tag: Path
    """The file that holds `version`."""

    @classmethod
    def of(cls, target: Path) -> PartialFile:
        """The partial download of `target`, beside it."""
        path = target.with_name(f".{target.name}.part")
        return cls(path, path.with_name(f"{path.name}.tag"))

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def version(self) -> str:
        """The server's version of the bytes on disk; empty where they cannot be continued."""
        return self.tag.read_text(encoding="latin-1") if self.size and self.tag.is_file() else ""


def download(url: str, target: Path, md5: str | None = None, retry_delays: Sequence[float] = RETRY_DELAYS) -> None:
    """Fetch `target` from `url` unless it exists: it appears whole, with the right MD5, or not at all.

    Waits for another process that fetches the same file. A file with a wrong MD5, also an existing one, is kept beside
    the target under another name. Raises WeightsError where the server does not have the file, the connection fails
    after all retries, the disk is full or the MD5 is wrong.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if target.is_file():
                corrupt = _move_aside_if_corrupt(target, target, md5)
                if corrupt is None:
                    return
                print(f"{target}: corrupt, its MD5 is not {md5}; kept as {corrupt.name}, fetching it again", flush=True)
            partial = PartialFile.of(target)
            _fetch_with_retries(url, target.name, partial, retry_delays)
            corrupt = _move_aside_if_corrupt(partial.path, target, md5)
            partial.tag.unlink(missing_ok=True)
            if corrupt is not None:
                raise WeightsError(
                    f"{target.name}: the download from {url} is corrupt, its MD5 is not {md5}; it is kept as "
                    f"{corrupt} and not used. The same command fetches it again"
                )
            partial.path.replace(target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror or error}); is its folder right?") from error


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    lock = FileLock(str(target.with_name(f".{target.name}.lock")))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target.name}: another process is fetching it; waiting for that", flush=True)
        with working(f"{target.name}: waiting for the process that is fetching it"):
            lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _fetch_with_retries(url: str, name: str, partial: PartialFile, retry_delays: Sequence[float]) -> None:
    """Request the file until it is whole; an attempt that adds MIN_PROGRESS bytes resets the count of failures."""
    failures, largest_size = 0, partial.size
    while True:
        try:
            _request(url, name, partial)
            return
        except RetryableError as error:
            if partial.size > largest_size + MIN_PROGRESS:
                failures = 0
            largest_size = max(largest_size, partial.size)
            if failures == len(retry_delays):
                resume_hint = (
                    f"; {format_bytes(partial.size)} are on disk, and the same command goes on from there"
                    if partial.size
                    else ""
                )
                raise WeightsError(f"{name}: cannot be fetched from {url} ({error}){resume_hint}") from error
        time.sleep(retry_delays[failures])
        failures += 1


def _request(url: str, name: str, partial: PartialFile) -> None:
    """Request the missing bytes once and append them; RetryableError, or WeightsError for a permanent failure."""
    version, offset = partial.version, partial.size
    headers = {"User-Agent": "mmaudio-lora", "Accept-Encoding": "identity"}
    if version:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        with error:  # it holds the connection
            _handle_http_error(error, url, name, partial, version)
        return
    except URLError as error:
        raise RetryableError(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise RetryableError(str(error) or type(error).__name__) from error
    with response:
        _save_response(response, name, partial, version, offset)


def _handle_http_error(error: HTTPError, url: str, name: str, partial: PartialFile, version: str) -> None:
    """Raise the error for a refused request; return where the refusal means that no bytes are missing."""
    if error.code == 416 and version:
        if error.headers.get("Content-Range", "").endswith(f"*/{partial.size}"):
            return
        partial.tag.unlink()
        raise RetryableError("the file on the server has changed") from error
    if error.code in RETRY_STATUSES:
        raise RetryableError(f"HTTP status {error.code}, {error.reason}") from error
    reason = "it is not there" if error.code in (404, 410) else "the server refuses it"
    raise WeightsError(
        f"{name}: {reason} (HTTP status {error.code} from {url}); get the file elsewhere and put it into ./weights"
    ) from error


def _save_response(
    response: http.client.HTTPResponse, name: str, partial: PartialFile, version: str, offset: int
) -> None:
    """Write the body after the first `offset` bytes, or from the beginning where the response is the whole file."""
    new_version = _version(response)
    if response.status == 206:
        byte_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if byte_range is None or int(byte_range[1]) != offset or (new_version and new_version != version):
            partial.tag.unlink(missing_ok=True)
            raise RetryableError("the server sent another range than requested")
        total: int | None = int(byte_range[2])
    else:
        length = response.headers.get("Content-Length")
        offset, total = 0, None if length is None else int(length)
        partial.tag.unlink(missing_ok=True)
    _write_body(response, name, partial, total, offset, new_version)
    if total is not None and partial.size != total:
        raise RetryableError(f"the connection was cut after {format_bytes(partial.size)} of {format_bytes(total)}")


def _write_body(
    response: http.client.HTTPResponse, name: str, partial: PartialFile, total: int | None, offset: int, version: str
) -> None:
    if total is not None and shutil.disk_usage(partial.path.parent).free < total - offset:
        raise _disk_full_error(partial.path, name, total)
    try:
        with partial.path.open("r+b" if offset else "wb") as file:
            if not offset and version:
                partial.tag.write_text(version, encoding="latin-1")
            file.seek(offset)
            for chunk in progress_bytes(_read_chunks(response), total, offset, name):
                file.write(chunk)
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise _disk_full_error(partial.path, name, total) from error
        raise


def _read_chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK_SIZE)
        except (OSError, http.client.HTTPException) as error:
            raise RetryableError(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _version(response: http.client.HTTPResponse) -> str:
    """The strong ETag, else the time of the last change, as If-Range takes them; empty where there is neither."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _disk_full_error(path: Path, name: str, total: int | None) -> WeightsError:
    on_disk = path.stat().st_size if path.is_file() else 0
    missing = "" if total is None else f" for {format_bytes(total - on_disk)} more"
    free = shutil.disk_usage(path.parent).free
    return WeightsError(
        f"{name}: no space left in {path.parent}{missing} ({format_bytes(free)} free); make room, and the same command "
        "goes on, or set HF_HOME to a folder on another disk"
    )


def _move_aside_if_corrupt(path: Path, target: Path, md5: str | None) -> Path | None:
    """Rename a file with a wrong MD5 to a name beside `target`; the new path, None for an intact file."""
    if md5 is None or (actual_md5 := file_digests(path).md5) == md5:
        return None
    return move_aside(path, target, actual_md5)
