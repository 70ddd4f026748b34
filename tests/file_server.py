"""A server on the loopback address that hands out files, and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileSite:
    """What the server has, how it behaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By path, such as `/file.pth`."""
    cut_after: list[int] = field(default_factory=list)
    """After so many bytes of the body the next responses end."""
    statuses: list[int] = field(default_factory=list)
    """What the next requests are answered with instead."""
    sends_etag: bool = True
    """Whether responses have an ETag."""
    supports_range: bool = True
    """Whether it answers a Range."""
    supports_if_range: bool = True
    """Whether it heeds If-Range."""
    sends_length: bool = True
    """Whether it says how long a whole file is."""
    gate: threading.Event | None = None
    """Bodies wait for it after their first byte."""
    address: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each GET, in order."""

    def etag(self, path: str) -> str:
        """The ETag of what lies at `path` now."""
        return f'"{hashlib.md5(self.files[path]).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: FileSite

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.site.requests.append((self.path, self.headers.get("Range")))
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        site = self.site
        if body and site.statuses:
            self._empty(site.statuses.pop(0))
        elif self.path not in site.files:
            self._empty(404, X_Error_Code="EntryNotFound")  # as the hub has it
        else:
            self._file(site.files[self.path], body)

    def _empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, content: bytes, body: bool) -> None:
        site, asked = self.site, self.headers.get("Range")
        fresh = not site.supports_if_range or self.headers.get("If-Range") in (None, site.etag(self.path))
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and site.supports_range and fresh else None
        if start is not None and start >= len(content):
            self._empty(416, Content_Range=f"bytes */{len(content)}")
            return
        self.send_response(200 if start is None else 206)
        if site.sends_etag:
            self.send_header("ETag", site.etag(self.path))
        self.send_header("X-Repo-Commit", "0" * 40)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        rest = content[start or 0 :]
        if site.sends_length:
            self.send_header("Content-Length", str(len(rest)))
        else:
            self.close_connection = True
        self.end_headers()
        if body:
            self._send(rest)

    def _send(self, rest: bytes) -> None:
        if self.site.cut_after:
            rest = rest[: self.site.cut_after.pop(0)]
            self.close_connection = True
        try:
            self.wfile.write(rest[:1])
            if self.site.gate is not None:
                self.site.gate.wait(300)
            self.wfile.write(rest[1:])
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serve_files(**settings: Any) -> Iterator[FileSite]:
    """A server, up while the block runs."""
    with serve(FileSite(**settings), _Handler) as site:
        yield site


@contextmanager
def serve(site: Any, handler: type[BaseHTTPRequestHandler]) -> Iterator[Any]:
    """A server of `site` on the loopback address, up while the block runs; `site` gets its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"site": site}))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
