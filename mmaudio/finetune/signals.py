"""Signals that stop a training run: it finishes its step, saves and ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNAL_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")  # the last two are what batch schedulers send
STOP_SIGNALS = tuple(getattr(signal, name) for name in SIGNAL_NAMES if hasattr(signal, name))
"""Signals that stop the run; a second SIGINT ends the process at once."""


class StopSignals:
    """Context in which the signals only set `received`; after it the earlier handlers are back.

    An earlier handler is called at the end: submitit's, for one, then queues the job again.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal that came, if any."""
        self._earlier_handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._earlier_handlers = {number: signal.signal(number, self._record) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)
        handler = None if self.received is None else self._earlier_handlers.get(self.received)
        if self.received is not None and callable(handler) and handler is not signal.default_int_handler:
            signal.raise_signal(self.received)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
