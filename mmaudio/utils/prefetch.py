"""Working ahead: an iterator that runs in a thread of its own, a bounded number of items before its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Stands behind the last item, with the error that ended the iterator, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetched(items: Iterator[T], ahead: int) -> Iterator[T]:
    """The same items in the same order, at most `ahead` of them made before they are asked for.

    What `items` raises is raised here; where the consumer stops early, so does the thread.
    """
    waiting: queue.Queue[T | _End] = queue.Queue(ahead)
    stopped = threading.Event()

    def work() -> None:
        end = _End(None)
        try:
            for item in items:
                if stopped.is_set():
                    return
                waiting.put(item)
        except BaseException as error:  # handed to the consumer, which raises it
            end = _End(error)
        waiting.put(end)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                waiting.get(timeout=0.01)
            except queue.Empty:
                thread.join(0.01)
