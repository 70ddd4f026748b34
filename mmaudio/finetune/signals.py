"""Signals that stop a training run: it finishes its step, saves and ends."""

from __future__ import annotations

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
        self._signals: list[int] = []
        self._earlier_handlers: dict[int, Any] = {}

    @property
    def received(self) -> int | None:
        """The signal that came first, if any."""
        return self._signals[0] if self._signals else None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._earlier_handlers = {
                number: signal.signal(number, self._record)
                for number in STOP_SIGNALS
                if not (number == SIGHUP and signal.getsignal(number) is signal.SIG_IGN)  # nohup
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)
        handler = None if self.received is None else self._earlier_handlers.get(self.received)
        if self.received is not None and callable(handler) and handler not in COMMAND_HANDLERS:
            signal.raise_signal(self.received)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)  # in one step: a second signal may come amid this handler
        if len(self._signals) > 1:
            return
        leave_closed_terminal(number)
        if self.announce:
            with suppress(OSError):  # no print: the signal may have come within one
                os.write(1, STOP_LINE)
        is_command = self._earlier_handlers[number] is raise_interrupt
        absorb_repeats(number, signal.SIG_DFL if is_command else signal.default_int_handler)
