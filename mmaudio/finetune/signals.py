"""Signals that ask a long job to stop: it finishes its step, saves and goes."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")  # the last two are what batch schedulers send
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
"""What asks for the stop; a second SIGINT ends the process at once."""


class Interrupts:
    """Within it the signals only set `asked`; after it they do what they did before.

    A handler that was there before gets the signal at the end: submitit's, for one, then queues the job again.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal that came, if any."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        handler = None if self.asked is None else self._before.get(self.asked)
        if self.asked is not None and callable(handler) and handler is not signal.default_int_handler:
            signal.raise_signal(self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
