"""One large file over HTTP, whole or not at all: resumed where it was cut, checked, and fetched once by many processes.

    download("https://host/file.pth", Path("cache/file.pth"), md5="69f5...")

What has arrived lies in `.NAME.part` beside the target, and with it, in `.NAME.part.tag`, what the server called that
version of the file (its ETag, or when it was changed last): a server that has another version by now sends it whole.
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
from mmaudio.utils.checksums import digests, set_aside
from mmaudio.utils.progress import amount, progress_bytes

PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each new try after one that brought nothing; then it is an error."""
SILENCE = 30.0
"""Seconds without a byte after which a connection counts as cut."""
BLOCK = 1 << 18
PROGRESS = 1 << 20
"""Bytes that a try has to bring for the next one to count as the first again."""
FULL = (errno.ENOSPC, errno.EDQUOT)
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that pass."""


class Cut(Exception):
    """A connection that ended too early, or a server that is busy: worth another try."""


@dataclass(frozen=True)
class Part:
    """What has arrived of a file."""

    path: Path
    tag: Path

    @classmethod
    def of(cls, target: Path) -> Part:
        """That of `target`, beside it."""
        path = target.with_name(f".{target.name}.part")
        return cls(path, path.with_name(f"{path.name}.tag"))

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def version(self) -> str:
        """What the server calls the version that the bytes are of; empty where they cannot be continued."""
        return self.tag.read_text(encoding="latin-1") if self.size and self.tag.is_file() else ""


def download(url: str, target: Path, md5: str | None = None, pauses: Sequence[float] = PAUSES) -> None:
    """Fetch `target` from `url`, unless it is there. It appears whole, with the right MD5, or not at all.

    Another process that fetches it is waited for. A file with a wrong MD5, also one that was there before, is kept
    beside the target under another name. Raises WeightsError where the server does not have the file, the connection is
    cut and stays so, there is no room, or what came has a wrong MD5.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if target.is_file():
                aside = _checked(target, target, md5)
                if aside is None:
                    return
                print(f"{target}: corrupt, its MD5 is not {md5}; kept as {aside.name}, fetching it again", flush=True)
            part = Part.of(target)
            _fetch(url, target.name, part, pauses)
            aside = _checked(part.path, target, md5)
            part.tag.unlink(missing_ok=True)
            if aside is not None:
                raise WeightsError(
                    f"{target.name}: what came from {url} is corrupt, its MD5 is not {md5}; it is kept as {aside} and "
                    "not used. The same command fetches it again"
                )
            part.path.replace(target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror or error}); is its folder right?") from error


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    lock = FileLock(str(target.with_name(f".{target.name}.lock")))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target.name}: another process is fetching it; waiting for that", flush=True)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _fetch(url: str, name: str, part: Part, pauses: Sequence[float]) -> None:
    """Try until the part is whole; each of several tries in a row has to bring something."""
    failures, farthest = 0, part.size
    while True:
        try:
            _receive(url, name, part)
            return
        except Cut as cut:
            if part.size > farthest + PROGRESS:
                failures = 0
            farthest = max(farthest, part.size)
            if failures == len(pauses):
                kept = f"; {amount(part.size)} are here, and the same command goes on from there" if part.size else ""
                raise WeightsError(f"{name}: cannot be fetched from {url} ({cut}){kept}") from cut
        time.sleep(pauses[failures])
        failures += 1


def _receive(url: str, name: str, part: Part) -> None:
    """One try: ask for what is missing and append it. Raises Cut, and WeightsError for what another try cannot mend."""
    version, done = part.version, part.size
    headers = {"User-Agent": "mmaudio-lora", "Accept-Encoding": "identity"}
    if version:
        headers |= {"Range": f"bytes={done}-", "If-Range": version}
    try:
        response = urlopen(Request(url, headers=headers), timeout=SILENCE)
    except HTTPError as error:
        _refused(error, url, name, part, version)
        return
    except URLError as error:
        raise Cut(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Cut(str(error) or type(error).__name__) from error
    with response:
        _store(response, name, part, version, done)


def _refused(error: HTTPError, url: str, name: str, part: Part, version: str) -> None:
    """Returns where the refusal means that nothing is missing."""
    if error.code == 416 and version:
        if error.headers.get("Content-Range", "").endswith(f"*/{part.size}"):
            return
        part.tag.unlink()
        raise Cut("the file there is another by now") from error
    if error.code in BUSY:
        raise Cut(f"HTTP status {error.code}, {error.reason}") from error
    hint = "it is not there" if error.code in (404, 410) else "the server refuses it"
    raise WeightsError(
        f"{name}: {hint} (HTTP status {error.code} from {url}); get the file elsewhere and put it into ./weights"
    ) from error


def _store(response: http.client.HTTPResponse, name: str, part: Part, version: str, done: int) -> None:
    """Write the response's body behind the first `done` bytes, or from the beginning where it is the whole file."""
    now = _version(response)
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != done or (now and now != version):
            part.tag.unlink(missing_ok=True)
            raise Cut("the server sent another part than was asked for")
        total: int | None = int(span[2])
    else:
        length = response.headers.get("Content-Length")
        done, total = 0, None if length is None else int(length)
        part.tag.unlink(missing_ok=True)
    _append(response, name, part, total, done, now)
    if total is not None and part.size != total:
        raise Cut(f"the connection was cut after {amount(part.size)} of {amount(total)}")


def _append(
    response: http.client.HTTPResponse, name: str, part: Part, total: int | None, done: int, version: str
) -> None:
    if total is not None and shutil.disk_usage(part.path.parent).free < total - done:
        raise _full(part.path, name, total)
    try:
        with part.path.open("r+b" if done else "wb") as file:
            if not done and version:
                part.tag.write_text(version, encoding="latin-1")
            file.seek(done)
            for block in progress_bytes(_blocks(response), total, done, name):
                file.write(block)
    except OSError as error:
        if error.errno in FULL:
            raise _full(part.path, name, total) from error
        raise


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise Cut(str(error) or type(error).__name__) from error
        if not block:
            return
        yield block


def _version(response: http.client.HTTPResponse) -> str:
    """The strong ETag, else the time of the last change, as If-Range takes them; empty where there is neither."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _full(path: Path, name: str, total: int | None) -> WeightsError:
    here = path.stat().st_size if path.is_file() else 0
    more = "" if total is None else f" for {amount(total - here)} more"
    free = shutil.disk_usage(path.parent).free
    return WeightsError(
        f"{name}: no space left in {path.parent}{more} ({amount(free)} free); make room, and the same command goes on, "
        "or set HF_HOME to a folder on another disk"
    )


def _checked(path: Path, target: Path, md5: str | None) -> Path | None:
    """None for a sound file; where a corrupt one lies from now on, beside `target`, where nothing uses it."""
    if md5 is None or (found := digests(path).md5) == md5:
        return None
    return set_aside(path, target, found)
