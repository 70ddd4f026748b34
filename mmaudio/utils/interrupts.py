"""Signals that ask a process to end: SIGINT (Ctrl-C), SIGTERM, and SIGHUP of a terminal that is closed.

    exit_on_signals()            # first of all: one line and the exit status, also while torch is imported
    with raise_interrupts():     # then: the first signal raises Interrupt, so that files and processes are cleaned up
        ...

A signal that is ignored when the process starts stays ignored, as nohup wants it.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
REPEAT_SECONDS = 0.5
"""A signal that comes so soon after the first is the same request: `timeout` and a pipeline send it once more."""


Handler = Callable[[int, FrameType | None], Any] | int


class Interrupt(KeyboardInterrupt):
    """A signal that asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(describe_interrupt(number))
        self.number = number


def describe_interrupt(number: int) -> str:
    """The line that a user reads when the signal `number` has ended a command."""
    cause = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return f"{cause}; the same command continues from here"


def exit_on_signals() -> None:
    """From here on a signal prints its line and ends the process at once; also one that `hold_signals` held back."""
    _set_handlers(_exit)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def hold_signals(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Hold signals back in the block, and from the processes that start there until they call `exit_on_signals`.

    SIGINT while Python itself is starting would show a traceback that no program can prevent.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # a new process inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def raise_interrupts() -> Iterator[None]:
    """In the block the first signal raises Interrupt, and a second one kills: SIGINT, or the same as the first.

    Any other counts when it comes twice: the pipeline sends SIGTERM after SIGINT, as it cannot know whether that has
    come.
    """
    with _handlers(raise_interrupt):
        yield


@contextmanager
def note_signals() -> Iterator[list[int]]:
    """A list of the signals that come in the block, which do nothing else, in their order.

    One that comes within REPEAT_SECONDS after another is left out.
    """
    numbers: list[int] = []
    last_time = -REPEAT_SECONDS

    def note(number: int, frame: FrameType | None) -> None:
        """Note a signal, unless it repeats the one before."""
        nonlocal last_time
        if (now := time.monotonic()) - last_time > REPEAT_SECONDS:
            last_time = now
            leave_closed_terminal(number)
            numbers.append(number)

    with _handlers(note):
        yield numbers


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    earlier_handlers = {number: signal.getsignal(number) for number in SIGNALS}
    _set_handlers(handler)
    try:
        yield
    finally:
        for number, earlier_handler in earlier_handlers.items():
            signal.signal(number, earlier_handler)


def raise_interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handler of a first signal."""
    absorb_repeats(number)
    leave_closed_terminal(number)
    raise Interrupt(number)


def absorb_repeats(number: int, on_second: Handler = signal.SIG_DFL, earlier: frozenset[int] = frozenset()) -> None:
    """Ignore what comes within REPEAT_SECONDS after the signal `number`; then `on_second` handles a second one.

    The time passes here: a signal that came during a long computation would be handled, and so dated, after it.
    A second one is SIGINT, `number`, or one of `earlier`.
    """
    signal.signal(number, _ignore)
    _set_handlers(_ignore)
    time.sleep(REPEAT_SECONDS)
    requests = earlier | {number}
    _set_handlers(lambda other, frame: absorb_repeats(other, on_second, requests))
    for second in requests | {signal.SIGINT}:
        if signal.getsignal(second) is not signal.SIG_IGN:
            signal.signal(second, on_second)


def leave_closed_terminal(number: int) -> None:
    """Where `number` is SIGHUP, send further output nowhere: a terminal that is closed refuses it with an error."""
    if signal.Signals(number).name != "SIGHUP":
        return
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            discard_output(descriptor)


def discard_output(descriptor: int) -> None:
    """Send what is written to a file descriptor nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _set_handlers(handler: Callable[[int, FrameType | None], Any]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing. SIG_IGN would be handed on to the programs that this process starts."""


def _exit(number: int, frame: FrameType | None) -> None:
    leave_closed_terminal(number)
    with suppress(OSError):  # no print: the signal may have come within one
        os.write(2, f"{describe_interrupt(number)}\n".encode())
    os._exit(128 + number)
