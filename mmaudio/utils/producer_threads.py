"""Iterators that several threads produce at once, with a bounded number of items ahead of the consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class SourceEnd:
    """What comes after the last item of a source, with the error that ended it, if any."""

    error: Exception | None = None


@dataclass(frozen=True)
class _ThreadEnd:
    """What a thread leaves when no source is left, with the error of the iterator of sources, if any."""

    error: BaseException | None = None


class _Producers(Generic[K, T]):
    """Threads that take one source after the other and put its items into one queue."""

    def __init__(self, sources: Iterable[tuple[K, Iterator[T]]], max_ahead: int) -> None:
        self.ready: queue.Queue[tuple[K, T | SourceEnd] | _ThreadEnd] = queue.Queue(max_ahead)
        self.stopped = threading.Event()
        self._sources, self._lock = iter(sources), threading.Lock()

    def run(self, context: Callable[[], AbstractContextManager[None]]) -> None:
        """The threads' function."""
        end = _ThreadEnd()
        try:
            with context():
                while (source := self._next_source()) is not None:
                    self._produce(*source)
        except BaseException as error:  # handed to the consumer, which raises it
            end = _ThreadEnd(error)
        self.ready.put(end)

    def _next_source(self) -> tuple[K, Iterator[T]] | None:
        with self._lock:
            return None if self.stopped.is_set() else next(self._sources, None)

    def _produce(self, key: K, items: Iterator[T]) -> None:
        end = SourceEnd()
        try:
            for item in items:
                if self.stopped.is_set():
                    return
                self.ready.put((key, item))
        except Exception as error:
            end = SourceEnd(error)
        self.ready.put((key, end))


def interleave(
    sources: Iterable[tuple[K, Iterator[T]]],
    num_threads: int,
    max_ahead: int,
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[tuple[K, T | SourceEnd], None, None]:
    """Yield the items of all `sources`, each with its source's key, as they are ready, and a `SourceEnd` after each.

    A thread takes the next source when it has finished one, so that the iterator of sources runs in these threads, one
    at a time. Items of one source keep their order. `max_ahead` items wait at most, beside one in each thread, which
    works within a `context` of its own. When the consumer stops early, so do the threads.
    """
    producers = _Producers(sources, max_ahead)
    threads = [
        threading.Thread(target=producers.run, args=(context,), name=f"producer {number}", daemon=True)
        for number in range(num_threads)
    ]
    for thread in threads:
        thread.start()
    num_running = len(threads)
    try:
        while num_running:
            entry = producers.ready.get()
            if not isinstance(entry, _ThreadEnd):
                yield entry
                continue
            num_running -= 1
            if entry.error is not None:
                raise entry.error
    finally:
        producers.stopped.set()
        while any(thread.is_alive() for thread in threads):
            try:
                producers.ready.get(timeout=0.01)
            except queue.Empty:
                continue
