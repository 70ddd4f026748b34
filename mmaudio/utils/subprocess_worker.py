"""Worker process with a time limit per call, for files that may hang or crash a decoder.

The process starts once, with its imports done, and again after a call that it did not survive.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import ModuleType, TracebackType
from typing import Any, Generic, TypeVar

from mmaudio.utils.interrupts import SIGNALS

Result = TypeVar("Result")
SHUTDOWN_SECONDS = 5.0
"""Time for the process to end by itself."""
EXIT_SECONDS = 60.0
"""Longest wait for the status of a process whose pipe has closed: it is about to end, also on a slow machine."""
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class WorkerError(Exception):
    """A call without a result; the message gives the reason."""


class SubprocessWorker(Generic[Result]):
    """Calls of a module-level function in another process, as a context manager."""

    def __init__(self, function: Callable[..., Result], quiet: bool = True) -> None:
        self._function, self._quiet = function, quiet
        self._context: Any = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            self._context.set_forkserver_preload([function.__module__])
        self._process: Any = None
        self._pipe: Connection | None = None
        self._limit = self._deadline = 0.0

    def __call__(self, arguments: tuple[Any, ...], limit: float) -> Result:
        """Call `function(*arguments)`; WorkerError if it takes more than `limit` seconds or ends the process."""
        self.begin(arguments, limit)
        return self.finish()

    def begin(self, arguments: tuple[Any, ...], limit: float) -> None:
        """Start a call that may take `limit` seconds; `finish` has its result."""
        self._ensure_started().send(arguments)
        self._limit, self._deadline = limit, time.monotonic() + limit

    @property
    def pid(self) -> int | None:
        """Number of the process; None while there is none."""
        return None if self._pipe is None else int(self._process.pid)

    @property
    def pipe(self) -> Connection:
        """The connection that is ready to be read when the call that was begun has ended."""
        assert self._pipe is not None
        return self._pipe

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit of the call that was begun, at least 0."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def is_ready(self) -> bool:
        """Whether `finish` returns or raises at once."""
        return not self.seconds_left or self.pipe.poll()

    def finish(self) -> Result:
        """Wait for the call that was begun; its result, or WorkerError as `__call__`."""
        try:
            if not self.pipe.poll(self.seconds_left):
                self._stop(kill=True)
                raise WorkerError(f"not finished after {self._limit:g} s (--timeout-per-video)")
            result: Result = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(EXIT_SECONDS)
            status = self._process.exitcode
            self._stop(kill=True)
            raise WorkerError(f"reading it {_describe_exit(status)}") from error
        return result

    def __enter__(self) -> SubprocessWorker[Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(kill=kind is not None)

    def _ensure_started(self) -> Connection:
        if self._pipe is None:
            pipe, child_pipe = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(child_pipe, self._function, self._quiet), daemon=True)
            with isolated_start():
                process.start()
                self._pipe, self._process = pipe, process  # before a signal can interrupt this
            child_pipe.close()
        return self._pipe

    def _stop(self, kill: bool) -> None:
        if self._pipe is None:
            return
        if kill:
            self._process.kill()
        self._pipe.close()
        self._process.join(SHUTDOWN_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._pipe = self._process = None


def import_for_workers(module: str) -> None:
    """Import `module` for later workers while this process goes on, with imports of its own for instance.

    The import is done in the process from which workers are forked. Without this call it starts with the first worker.
    """
    if START_METHOD == "forkserver":
        from multiprocessing import forkserver  # absent on Windows

        multiprocessing.set_forkserver_preload([module])
        with isolated_start():
            forkserver.ensure_running()


@contextmanager
def isolated_start() -> Iterator[None]:
    """Processes that start in the block get no signal of the terminal, and do not import the user's script.

    Ctrl-C goes to all processes of a terminal; theirs is to be ended by their parent. multiprocessing would import the
    script, and so run it once more where it has no `if __name__ == "__main__"`.
    """
    script = sys.modules["__main__"]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a new process inherits it
    try:
        resource_tracker.ensure_running()  # a process too; where it starts it, it unblocks SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        sys.modules["__main__"] = ModuleType("__main__")
        yield
    finally:
        sys.modules["__main__"] = script
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_with_parent() -> None:
    """Let this process end as soon as its parent has, however that ended, even in the midst of a decoder."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        """End the process once its parent has ended."""
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _describe_exit(status: int | None) -> str:
    """Describe an exit status."""
    if status is not None and status < 0:
        return f"crashed the decoder ({signal.Signals(-status).name})"
    return "failed unexpectedly; --debug shows where"


def _serve(pipe: Connection, function: Callable[..., Any], quiet: bool) -> None:
    """Main function of the worker process: serve calls until the pipe closes. An exception ends the process."""
    end_with_parent()
    if quiet:
        with open(os.devnull, "w") as devnull:  # noqa: PTH123
            os.dup2(devnull.fileno(), sys.stderr.fileno())
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(function(*arguments))
