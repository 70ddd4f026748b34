"""Prefetching iterator: items are produced in a background thread, a bounded number ahead of the consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Queue marker after the last item, with the error that ended the iterator, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetch(items: Iterator[T], max_ahead: int) -> Iterator[T]:
    """Yield the same items in the same order, at most `max_ahead` of them produced in advance.

    Exceptions of `items` are raised here; when the consumer stops early, so does the thread.
    """
    ready: queue.Queue[T | _End] = queue.Queue(max_ahead)
    stopped = threading.Event()

    def produce() -> None:
        """Put the items into the queue, and what ended them."""
        end = _End(None)
        try:
            for item in items:
                if stopped.is_set():
                    return
                ready.put(item)
        except BaseException as error:  # handed to the consumer, which raises it
            end = _End(error)
        ready.put(end)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.01)
            except queue.Empty:
                thread.join(0.01)
