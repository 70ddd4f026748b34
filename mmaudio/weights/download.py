"""Download of one large file over HTTP: resumed, checked by MD5, and fetched once by concurrent processes.

    download("https://host/file.pth", Path("cache/file.pth"), md5="69f5...")

A partial download is `.NAME.part` beside the target; `.NAME.part.tag` holds its version (the server's ETag or time of
last change). If the server has another version, the file is fetched from the beginning.
"""

from __future__ import annotations

import errno
import http.client
import math
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request

from filelock import FileLock, Timeout

from mmaudio.errors import WeightsError
from mmaudio.utils.checksums import file_digests, move_aside
from mmaudio.utils.progress import format_bytes, progress_bytes, working
from mmaudio.utils.terminal import print_lines
from mmaudio.weights.stall_guard import GuardedResponse, open_guarded

RETRY_DELAYS = (1.0, 2.0, 4.0)
"""Seconds before each retry; with all of them used up the download fails."""
SIZE_TOLERANCE = 0.03
"""Share by which a file may differ from the size that is known."""
MAX_REASON_LENGTH = 200
"""Characters of a server's words in an error."""
VERSION = re.compile(r"[ -~]{1,200}")
"""An ETag or time that a header can send back."""
CHUNK_SIZE = 1 << 18
MIN_PROGRESS = 1 << 20
"""Bytes that an attempt has to add for the count of failures to start again."""
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses of temporary failures."""


class RetryableError(Exception):
    """A connection that ended too early, a busy server, or an answer that is none."""

    def __init__(self, reason: object) -> None:
        text = " ".join(str(reason).split()) or type(reason).__name__
        super().__init__("".join(c if c.isprintable() else "?" for c in text)[:MAX_REASON_LENGTH])


@dataclass(frozen=True)
class Source:
    """A file on a server."""

    url: str
    name: str
    size: int = 0
    """Bytes, up to SIZE_TOLERANCE; 0 where that is unknown."""

    def is_size(self, size: int) -> bool:
        """Whether a file of that size may be this one."""
        return not self.size or abs(size - self.size) <= SIZE_TOLERANCE * self.size

    @property
    def max_size(self) -> float:
        """Bytes that the file has at most; infinite where its size is unknown."""
        return (1 + SIZE_TOLERANCE) * self.size if self.size else math.inf


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
        version = self.tag.read_text(encoding="latin-1") if self.size and self.tag.is_file() else ""
        return version if VERSION.fullmatch(version) else ""

    def discard_unless_resumable(self) -> None:
        """Remove what no later request can continue."""
        if not self.version:
            self.path.unlink(missing_ok=True)
            self.tag.unlink(missing_ok=True)


def download(
    url: str, target: Path, md5: str | None = None, retry_delays: Sequence[float] = RETRY_DELAYS, size: int = 0
) -> None:
    """Fetch `target` from `url` unless it exists: it appears whole, with the right MD5 and size, or not at all.

    `size` in bytes is right up to SIZE_TOLERANCE, or 0. Waits for another process that fetches the same file. A file
    with a wrong MD5, also an existing one, is kept beside the target under another name. Raises WeightsError where the
    server does not have the file, the connection fails after all retries, the disk is full or MD5 or size are wrong.
    """
    partial = PartialFile.of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if target.is_file():
                corrupt = _move_aside_if_corrupt(target, target, md5)
                if corrupt is None:
                    return
                print_lines(
                    f"{target}: corrupt, its MD5 is not {md5}; kept as {corrupt.name}, fetching it again", flush=True
                )
            _fetch_with_retries(Source(url, target.name, size), partial, retry_delays)
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
        print_lines(f"{target.name}: another process is fetching it; waiting for that", flush=True)
        with working(f"{target.name}: waiting for the process that is fetching it"):
            lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _fetch_with_retries(source: Source, partial: PartialFile, retry_delays: Sequence[float]) -> None:
    """Request the file until it is whole; an attempt that adds MIN_PROGRESS bytes resets the count of failures.

    What cannot be continued is not kept.
    """
    failures, largest_size = 0, partial.size
    while True:
        try:
            _request(source, partial)
            _check_size(source, partial, partial.size)
            return
        except RetryableError as error:
            if partial.size > largest_size + MIN_PROGRESS:
                failures = 0
            largest_size = max(largest_size, partial.size)
            if failures == len(retry_delays):
                resume_hint = (
                    f"; {format_bytes(partial.size)} are on disk, and the same command goes on from there"
                    if partial.version
                    else ""
                )
                partial.discard_unless_resumable()
                raise WeightsError(
                    f"{source.name}: cannot be fetched from {source.url} ({error}){resume_hint}"
                ) from error
        except WeightsError:
            partial.discard_unless_resumable()
            raise
        time.sleep(retry_delays[failures])
        failures += 1


def _request(source: Source, partial: PartialFile) -> None:
    """Request the missing bytes once and append them; RetryableError, or WeightsError for a permanent failure."""
    version, offset = partial.version, partial.size
    headers = {"User-Agent": "mmaudio-lora", "Accept-Encoding": "identity"}
    if version:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version}
    try:
        response = open_guarded(Request(source.url, headers=headers))
    except HTTPError as error:
        with error:  # it holds the connection
            _handle_http_error(error, source, partial, version)
        return
    except URLError as error:
        raise RetryableError(error.reason) from error
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a redirection to what is no address
        raise RetryableError(error) from error
    with response:
        _save_response(response, source, partial, version, offset)


def _handle_http_error(error: HTTPError, source: Source, partial: PartialFile, version: str) -> None:
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
        f"{source.name}: {reason} (HTTP status {error.code} from {source.url}); get the file elsewhere and put it into "
        "./weights"
    ) from error


def _save_response(response: GuardedResponse, source: Source, partial: PartialFile, version: str, offset: int) -> None:
    """Write the body after the first `offset` bytes, or from the beginning where the response is the whole file."""
    new_version = _version(response)
    total: int | None
    if response.status == 206:
        byte_range = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15})", response.headers.get("Content-Range", ""))
        if byte_range is None or int(byte_range[1]) != offset or (new_version and new_version != version):
            partial.tag.unlink(missing_ok=True)
            raise RetryableError("the server sent another range than requested")
        total = int(byte_range[2])
    elif response.status == 200:
        offset, total = 0, _content_length(response)
        partial.tag.unlink(missing_ok=True)
    else:
        raise RetryableError(f"HTTP status {response.status}, {response.reason}")
    if total is not None:
        _check_size(source, partial, total)
    _write_body(response, source, partial, total, offset, new_version)
    if total is None and not source.is_size(partial.size):
        raise RetryableError(f"the server sent {format_bytes(partial.size)} of about {format_bytes(source.size)}")
    if total is not None and partial.size != total:
        raise RetryableError(f"the connection was cut after {format_bytes(partial.size)} of {format_bytes(total)}")


def _check_size(source: Source, partial: PartialFile, size: int) -> None:
    """Raise WeightsError, and continue nothing, where the server's file is of another size than the right one."""
    if not source.is_size(size):
        partial.tag.unlink(missing_ok=True)
        raise WeightsError(
            f"{source.name}: {source.url} sends {format_bytes(size)}, about {format_bytes(source.size)} are expected; "
            "it is not kept. Is that a page to log in? Else get the file elsewhere and put it into ./weights"
        )


def _content_length(response: GuardedResponse) -> int | None:
    """Bytes of the body, None where the server does not say; RetryableError for a length that is no number."""
    lengths = set(response.headers.get_all("Content-Length", []))
    if response.chunked or not lengths:
        return None
    length = lengths.pop()
    if lengths or re.fullmatch(r"[0-9]{1,15}", length) is None:
        raise RetryableError(f"the server says that the file is {length!r} bytes long")
    return int(length)


def _write_body(
    response: GuardedResponse, source: Source, partial: PartialFile, total: int | None, offset: int, version: str
) -> None:
    if total is not None and shutil.disk_usage(partial.path.parent).free < total - offset:
        raise _disk_full_error(partial.path, source.name, total)
    limit = total if total is not None else source.max_size
    try:
        with partial.path.open("r+b" if offset else "wb") as file:
            if not offset and version:
                partial.tag.write_text(version, encoding="latin-1")
            file.seek(offset)
            for chunk in progress_bytes(_read_chunks(response), total, offset, source.name):
                file.write(chunk)
                if file.tell() > limit:
                    partial.tag.unlink(missing_ok=True)  # not to be continued
                    raise RetryableError(f"the server sends more than {format_bytes(limit)}")
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS:
            raise _disk_full_error(partial.path, source.name, total) from error
        raise


def _read_chunks(response: GuardedResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read_some(CHUNK_SIZE)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise RetryableError(error) from error
        if not chunk:
            return
        yield chunk


def _version(response: GuardedResponse) -> str:
    """The strong ETag, else the time of the last change, as If-Range takes them; empty where there is neither."""
    tag: str = response.headers.get("ETag", "")
    version = tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))
    return version if VERSION.fullmatch(version) else ""


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
