"""The check of every request before Gradio sees it: which host is asked, and which file.

Gradio compares the names of files, not where links lead, and fetches addresses of other hosts in a file's place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmaudio.app.folders import Folders

FILE_ROUTE = "/file="
MEDIA_SUFFIXES = (".flac", ".wav", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".wmv", ".png", ".jpg")
REPORT_FOLDER = "report"
"""Folder of an experiment whose pages are shown."""
CLOSED_ROUTES = ("/proxy=", "/stream/", "/component_server", "/monitoring", "/runs", "/dev/")
"""Gradio's routes that this page does not need."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass
class RequestGuard:
    """ASGI middleware that answers 403 for files outside of the results, and for names of other hosts."""

    app: Callable[[Message, Receive, Send], Awaitable[None]]
    folders: Folders
    hosts: tuple[str, ...] | None
    """Names under which a browser may ask; None: any, as the password protects."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or self.is_allowed(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"not served here\n"})

    def is_allowed(self, scope: Message) -> bool:
        """Whether a request is one that this page makes."""
        host = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        if self.hosts is not None and host.rsplit(":", 1)[0] not in self.hosts:
            return False
        path: str = scope.get("path", "")
        if any(route in path for route in CLOSED_ROUTES):
            return False
        _, is_file, name = path.partition(FILE_ROUTE)
        return not is_file or self.is_served(name)

    def is_served(self, name: str) -> bool:
        """Whether a file may be sent: media of the results and uploads, and the pages of reports."""
        try:
            path = Path(name).resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        if not Path(name).is_absolute() or not path.is_relative_to(self.folders.output):
            return False
        below = PurePosixPath(path.relative_to(self.folders.output).as_posix())
        is_page = (
            path.suffix == ".html" and REPORT_FOLDER in below.parts and below.parts[0] != self.folders.uploads.name
        )
        return is_page or path.suffix.lower() in (*MEDIA_SUFFIXES, ".safetensors")
