"""Lines that say what runs while nothing else is printed, on a terminal as well as in a file.

    with Heartbeat("loading the encoders"):    # after 8 s: "loading the encoders: 8 s so far"
        ...

Only the standard library is imported, as the first imports of a command are such a time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import ClassVar

from mmaudio.utils.interrupts import SIGNALS
from mmaudio.utils.terminal import print_lines

QUIET_SECONDS = 8.0
"""Longest silence on a terminal, and elsewhere in the first LATE_SECONDS of a block.

The environment variable `MMAUDIO_QUIET_SECONDS` sets it for a command.
"""
LATE_SECONDS, LATE_QUIET_SECONDS = 600.0, 60.0
"""Later a file gets a line a minute, so that a long job does not fill it."""
BRIEF_SECONDS = 0.5
"""A block that takes no longer says nothing, however long it was silent before it."""
POLL_SECONDS = 0.5
"""Seconds between two looks at the clock."""


def print_line(line: str) -> None:
    """Print a line at once; nobody may be reading any more."""
    with suppress(OSError, ValueError):
        print_lines(line, flush=True)


class Heartbeat:
    """A block of code that says what it does when nothing was printed for some seconds.

    Of nested ones the innermost speaks, for all of them in one line.
    `text` is what runs, or a function that returns the whole line, from the seconds since the start.
    """

    running: ClassVar[list[Heartbeat]] = []
    last_line: ClassVar[float] = time.monotonic()
    """When the last line of any heartbeat was printed."""

    def __init__(
        self,
        text: str | Callable[[float], str],
        write: Callable[[str], object] = print_line,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.text, self.write, self.clock = text, write, clock
        self.start = clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self.start = self.clock()
        Heartbeat.last_line = max(Heartbeat.last_line, self.start - quiet_seconds(0.0) + BRIEF_SECONDS)
        Heartbeat.running.append(self)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        Heartbeat.running.remove(self)

    def beat(self) -> None:
        """Print the line where it is due."""
        now = self.clock()
        if Heartbeat.running[-1:] == [self] and now - Heartbeat.last_line >= quiet_seconds(now - self.start):
            Heartbeat.last_line = now
            self.write("; ".join(block.describe(now - block.start) for block in Heartbeat.running))

    def describe(self, elapsed: float) -> str:
        """What runs, `elapsed` seconds after the start."""
        return self.text(elapsed) if callable(self.text) else f"{self.text}: {elapsed:.0f} s so far"

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they are for the main thread
        while not self._stop.wait(POLL_SECONDS):
            self.beat()


def has_bars() -> bool:
    """Whether progress bars can be shown: on a terminal that has a width, which some in containers have not."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # a stand-in for a terminal, as in a notebook
        return True


def quiet_seconds(elapsed: float) -> float:
    """Seconds without a line after which one is due, `elapsed` seconds after the start of a block."""
    return LATE_QUIET_SECONDS if elapsed >= LATE_SECONDS and not has_bars() else QUIET_SECONDS
