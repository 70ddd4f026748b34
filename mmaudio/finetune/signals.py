"""Signals that stop a training run: it finishes its step, saves and ends."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from mmaudio.utils.interrupts import absorb_repeats, leave_closed_terminal, raise_interrupt

SIGNAL_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")  # the last two are what batch schedulers send
STOP_SIGNALS = tuple(getattr(signal, name) for name in SIGNAL_NAMES if hasattr(signal, name))
"""Signals that stop the run; a second one, of the same kind or SIGINT, ends the process at once."""
STOP_LINE = b"\nstopping: finishing this step, then saving; a second signal ends it at once, without saving\n"
SIGHUP = getattr(signal, "SIGHUP", None)
COMMAND_HANDLERS = (signal.default_int_handler, raise_interrupt)
"""Handlers that would end the command: its own exit status says the same once everything is saved."""


class StopSignals:
    """Context in which the signals only set `received`; after it the earlier handlers are back.

    An earlier handler is called at the end: submitit's, for one, then queues the job again.
    """

    def __init__(self, announce: bool = True) -> None:
        self.announce = announce
        """Whether a line says what happens now."""
        self.received: int | None = None
        """The signal that came, if any."""
        self._earlier_handlers: dict[int, Any] = {}
        self._count = itertools.count()
        """Of the signals that were recorded; counting is atomic."""

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._earlier_handlers = {
                number: handler
                for number, handler in zip(STOP_SIGNALS, map(signal.getsignal, STOP_SIGNALS), strict=True)
                if not (number == SIGHUP and handler is signal.SIG_IGN)  # nohup
            }
            for number in self._earlier_handlers:  # a signal that comes here already finds them all
                signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)
        handler = None if self.received is None else self._earlier_handlers.get(self.received)
        if self.received is not None and callable(handler) and handler not in COMMAND_HANDLERS:
            signal.raise_signal(self.received)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if next(self._count):  # one that came within the handler of the first, before that ignores it
            return
        self.received = number
        leave_closed_terminal(number)
        if self.announce:
            with suppress(OSError):  # no print: the signal may have come within one
                os.write(1, STOP_LINE)
        is_command = self._earlier_handlers[number] is raise_interrupt
        absorb_repeats(number, signal.SIG_DFL if is_command else signal.default_int_handler)
