"""Work on files that may hang or crash a decoder: a process of its own with a time limit for each piece of work.

The process starts once, with what it needs imported, and again after each piece that it did not survive.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
LEAVING = 5.0
"""Seconds that the process gets to end by itself."""


class Lost(Exception):
    """A piece of work that gave no result; the message says why."""


class Guarded(Generic[Result]):
    """Calls `work`, a function at the top of a module, in another process. To be used in a `with` block."""

    def __init__(self, work: Callable[..., Result], quiet: bool = True) -> None:
        self._work, self._quiet = work, quiet
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload([work.__module__])
        self._process: Any = None
        self._pipe: Connection | None = None

    def __call__(self, arguments: tuple[Any, ...], limit: float) -> Result:
        """`work(*arguments)`; Lost where that takes more than `limit` seconds or ends the process."""
        pipe = self._started()
        pipe.send(arguments)
        try:
            if not pipe.poll(limit):
                self._stop(kill=True)
                raise Lost(f"not through after {limit:g} s (--timeout-per-video)")
            result: Result = pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(LEAVING)
            status = self._process.exitcode
            self._stop(kill=True)
            raise Lost(f"reading it {_ending(status)}") from error
        return result

    def __enter__(self) -> Guarded[Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(kill=kind is not None)

    def _started(self) -> Connection:
        if self._pipe is None:
            self._pipe, other = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(other, self._work, self._quiet), daemon=True)
            self._process.start()
            other.close()
        return self._pipe

    def _stop(self, kill: bool) -> None:
        if self._pipe is None:
            return
        if kill:
            self._process.kill()
        self._pipe.close()
        self._process.join(LEAVING)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._pipe = self._process = None


def _ending(status: int | None) -> str:
    """What an exit status means."""
    if status is not None and status < 0:
        return f"crashed the decoder ({signal.Signals(-status).name})"
    return "failed unexpectedly; --debug shows where"


def _serve(pipe: Connection, work: Callable[..., Any], quiet: bool) -> None:
    """The other process: work until the pipe closes. What `work` raises ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends this one
    if quiet:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(work(*arguments))
