"""HTTP requests that end: a connection is cut where headers or body bring too few bytes in a minute.

A socket's own timeout does not notice a server that sends a byte a second.
"""

from __future__ import annotations

import http.client
import socket
import threading
from contextlib import suppress
from typing import Any
from urllib.request import BaseHandler, HTTPHandler, Request, build_opener

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""
STALL_SECONDS = 60.0
"""Time in which a connection has to bring STALL_BYTES."""
STALL_BYTES = 1 << 16
MAX_IGNORED_BYTES = 1 << 16
"""Bytes that are read of a redirection's body, which nobody needs."""


class StallGuard:
    """A thread that cuts a connection where `num_bytes` grows by less than STALL_BYTES in STALL_SECONDS."""

    def __init__(self, connection: socket.socket) -> None:
        self.num_bytes = 0
        """Bytes of the body; whoever reads them counts them."""
        self.is_cut = False
        self._connection, self._end = connection, threading.Event()

    def start(self) -> None:
        """Watch until `stop`."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        last = 0
        while not self._end.wait(STALL_SECONDS):
            if self.num_bytes - last < STALL_BYTES:
                self.is_cut = True
                with suppress(OSError, ValueError):
                    self._connection.shutdown(socket.SHUT_RDWR)
                return
            last = self.num_bytes

    def stop(self) -> None:
        """Watch no more."""
        self._end.set()


class GuardedResponse(http.client.HTTPResponse):
    """A response with a guard of its headers, then one of its body: each has the whole time."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._connection = sock
        self.guard = StallGuard(sock)

    def begin(self) -> None:
        """Read the headers; OSError where the guard cut them off, which looks like their end."""
        self.guard.start()
        try:
            super().begin()
        except (OSError, ValueError, http.client.HTTPException):
            if not self.guard.is_cut:
                raise
        if self.guard.is_cut:
            raise TimeoutError(f"the server took more than {STALL_SECONDS:g} s for its answer")
        self.guard.stop()
        self.guard = StallGuard(self._connection)
        self.guard.start()

    def read(self, amt: int | None = None) -> bytes:
        """Read the body; without `amt`, as urllib reads a redirection's, no more than MAX_IGNORED_BYTES of it."""
        return super().read(MAX_IGNORED_BYTES if amt is None else amt)

    def read_some(self, size: int) -> bytes:
        """Read what has come of the body, at most `size` bytes; empty at its end. OSError where it stalls."""
        try:
            content = self.read1(size)
        except (OSError, ValueError, http.client.HTTPException):
            content = b""
            if not self.guard.is_cut:
                raise
        if not content and self.guard.is_cut:
            raise TimeoutError(f"less than {STALL_BYTES >> 10} kB came in {STALL_SECONDS:g} s")
        self.guard.num_bytes += len(content)
        return content

    def close(self) -> None:
        """Close the connection and end the guard."""
        self.guard.stop()
        super().close()


class _Connection(http.client.HTTPConnection):
    response_class = GuardedResponse


class _Handler(HTTPHandler):
    def http_open(self, request: Request) -> http.client.HTTPResponse:
        """Open an http address."""
        return self.do_open(_Connection, request)


def _build_secure_handlers() -> list[BaseHandler]:
    """The handler of https addresses; none where Python was built without ssl, which urllib then says."""
    try:
        from http.client import HTTPSConnection
        from urllib.request import HTTPSHandler
    except ImportError:
        return []

    class SecureConnection(HTTPSConnection):
        """A connection whose responses are guarded."""

        response_class = GuardedResponse

    class SecureHandler(HTTPSHandler):
        """Opens https addresses by such connections."""

        def https_open(self, request: Request) -> http.client.HTTPResponse:
            """Open an https address."""
            return self.do_open(SecureConnection, request)

    return [SecureHandler()]


def open_guarded(request: Request) -> GuardedResponse:
    """Send a request and read the headers of the answer; raises as urlopen does, and what its parsers raise."""
    response = build_opener(_Handler, *_build_secure_handlers()).open(request, timeout=TIMEOUT)
    assert isinstance(response, GuardedResponse)
    return response
