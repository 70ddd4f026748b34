"""Pool of worker processes, each call with a time limit of its own, for files that may hang or crash a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from mmaudio.utils.subprocess_worker import SubprocessWorker, WorkerError

Result = TypeVar("Result")
Call = tuple[tuple[Any, ...], float]
"""The arguments, and the seconds that the call may take."""


class SubprocessPool(Generic[Result]):
    """Calls of a module-level function in up to `size` other processes, as a context manager.

    A process starts with its first call, and again after a call that it did not survive.
    """

    def __init__(self, function: Callable[..., Result], size: int, quiet: bool = True) -> None:
        self._workers = [SubprocessWorker(function, quiet) for _ in range(size)]

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[int, Result | WorkerError]]:
        """Number of the call and its result, or why there is none, as they come."""
        calls_left = enumerate(calls)
        idle, busy = list(self._workers), dict[SubprocessWorker[Result], int]()
        while True:
            while idle and (call := next(calls_left, None)) is not None:
                number, (arguments, limit) = call
                worker = idle.pop()
                worker.begin(arguments, limit)
                busy[worker] = number
            if not busy:
                return
            wait([worker.pipe for worker in busy], min(worker.seconds_left for worker in busy))
            for worker in [worker for worker in busy if worker.is_ready]:
                idle.append(worker)
                yield busy.pop(worker), self._finish(worker)

    def _finish(self, worker: SubprocessWorker[Result]) -> Result | WorkerError:
        try:
            return worker.finish()
        except WorkerError as error:
            return error

    def __enter__(self) -> SubprocessPool[Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.__exit__(kind, error, trace)
