"""A process that has done the imports of the stages, from which they are forked: each would import torch and peft anew.

    with StageServer(["train_lora.py", *LATE_IMPORTS]) as server:
        process = server.start([sys.executable, "train_lora.py", "exp_id=x"])

A forked stage is a process of its own, with its own signals, memory and exit status. It is started as a program where
it cannot be forked: before the imports are done, on systems other than Linux, with torchrun, and where there may be a
GPU, as CUDA cannot be used in a process that was forked from one that has initialised it.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mmaudio.utils.garbage_collection import no_garbage_collection
from mmaudio.utils.heartbeat import Heartbeat
from mmaudio.utils.interrupts import SIGNALS, exit_on_signals, hold_signals

LATE_IMPORTS = (
    "peft",
    "open_clip",
    "torchvision.transforms.v2.functional",
    "scipy.signal",
    "scipy.stats",
    "torch.utils.tensorboard",
    "mmaudio.report.summary",
)
"""Modules that the stages import late, and that are slow to import."""
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files where there is a GPU: of CUDA, of ROCm, of WSL."""
START_CODE = f"""
import sys
sys.path[:] = [{str(Path(__file__).parents[2])!r}, *filter(None, sys.path)]
from {__name__} import main
main(sys.argv[1:])
"""
"""The program of the server. The current folder is not on its path: a module there may have any name."""


class Process(Protocol):
    """What the pipeline uses of `subprocess.Popen`."""

    pid: int
    returncode: int

    def poll(self) -> int | None:
        """The exit status, the negative number of the signal that ended it, or None while it runs."""

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""


class StageServer:
    """The process, as a context manager; it begins at once with its imports.

    `imports`: modules, and scripts that end in .py, of which everything is imported that they import at their start;
    empty: there is no process, and all stages are started as programs.
    """

    def __init__(self, imports: Iterable[str]) -> None:
        self._imports = list(imports)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection, self._server_end = Pipe()
        self._is_ready = False

    def start(self, command: list[str]) -> Process:
        """Start a command: forked, if it is this interpreter with a script, and the imports are done."""
        if command[0] == sys.executable and command[1].endswith(".py"):
            try:
                if self._can_fork():
                    return ForkedProcess(self._connection, command[1:])
            except (EOFError, OSError):  # the server has ended, or cannot fork any more
                self._stop()
        return subprocess.Popen(command)

    def _can_fork(self) -> bool:
        if self._process is not None and not self._is_ready and self._connection.poll():
            self._is_ready = self._connection.recv()
        return self._is_ready

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process, self._is_ready = None, False

    def __enter__(self) -> StageServer:
        if self._imports and may_fork():
            descriptor = self._server_end.fileno()
            command = [sys.executable, "-c", START_CODE, str(descriptor), *self._imports]
            try:
                with hold_signals(SIGNALS):  # Ctrl-C comes to the whole process group; the stages handle it
                    self._process = subprocess.Popen(command, pass_fds=[descriptor])
            except OSError:  # no memory for it: the stages are started as programs
                self._process = None
            except BaseException:
                self._stop()
                raise
        self._server_end.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._connection.close()


class ForkedProcess:
    """A stage that was forked; EOFError or OSError where the server cannot."""

    returncode: int

    def __init__(self, connection: Connection, arguments: list[str]) -> None:
        """`arguments`: the script and its own."""
        connection.send(arguments)
        self._connection = connection
        self.pid: int = connection.recv()
        self._has_ended = False

    def poll(self) -> int | None:
        """As `Process.poll`."""
        if not self._has_ended and self._connection.poll():
            try:
                self.returncode = self._connection.recv()
            except (EOFError, OSError):  # the server was killed, and with it the status is lost; the stage saves
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGTERM)
                self.returncode = -signal.SIGKILL
            self._has_ended = True
        return self.returncode if self._has_ended else None

    def send_signal(self, number: int) -> None:
        """As `Process.send_signal`."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def may_fork() -> bool:
    """Whether stages can be forked on this machine."""
    return sys.platform == "linux" and not any(Path(path).exists() for path in GPU_DEVICES)


def import_all(names: Iterable[str]) -> None:
    """Import modules, and what scripts import. One that fails is left to the stages, which may not need it."""
    with no_garbage_collection():
        for name in names:
            with suppress(Exception, SystemExit):
                if name.endswith(".py"):
                    runpy.run_path(name, run_name="imports")
                else:
                    import_module(name)
    gc.freeze()  # a collection would copy the pages that the stages share


def serve(connection: Connection) -> list[str]:
    """Fork a stage for every command that comes; returns in the stage's process, with its script and arguments."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # an import may have unblocked some
    connection.send(True)
    while True:
        arguments: list[str] = connection.recv()
        sys.stdout.flush()  # or every stage prints what the imports have printed
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            connection.close()
            return arguments
        connection.send(pid)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def run_script(arguments: list[str]) -> None:
    """Run a script as `python SCRIPT` does."""
    exit_on_signals()
    Heartbeat.last_line = time.monotonic()  # it was set when the server imported it
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # or all stages draw the same
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")


def main(arguments: list[str]) -> None:
    """Import, fork stages until the pipeline has ended, and be one of them in each."""
    descriptor, *imports = arguments
    connection = Connection(int(descriptor))
    import_all(imports)
    try:
        stage_arguments = serve(connection)
    except (EOFError, OSError):  # the pipeline has ended, or there is no memory to fork
        return
    run_script(stage_arguments)
