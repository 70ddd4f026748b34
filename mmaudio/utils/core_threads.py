"""Threads that share the cores: each computes whole items, and torch takes a share of the cores in each.

    with CoreThreads(device) as threads, Progress(len(batches), "sampling") as counter:
        results = list(threads.run(jobs))

Short operations on small tensors scale badly over the cores, whole items do not. On an error or a signal `counter` is
left first: computations that count their steps with it then end after the step that they are in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from mmaudio.utils.cores import count_cores

MAX_THREADS = 8
"""Items that are computed at once: each takes memory of its own."""
AHEAD = 2
"""Items per thread that are drawn before the results of earlier ones are taken."""
T = TypeVar("T")


class CoreThreads:
    """A context with threads for items on one device; with one core there are none, and items are computed here.

    On a CPU the threads of torch are divided among them; a GPU is shared, and the cores do the rest.
    """

    def __init__(self, device: torch.device) -> None:
        self.num_torch_threads = torch.get_num_threads()
        cores = self.num_torch_threads if device.type == "cpu" else count_cores()
        self.count = min(MAX_THREADS, cores)
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> CoreThreads:
        if self.count > 1:
            share = max(1, self.num_torch_threads // self.count)
            self._pool = ThreadPoolExecutor(self.count, "cores", torch.set_num_threads, (share,))
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.num_torch_threads)  # of threads that are started from here on

    def run(self, jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
        """The results of jobs, in their order; a few jobs are drawn ahead."""
        if self._pool is None:
            yield from (job() for job in jobs)
            return
        pending: deque[Future[T]] = deque()
        for job in jobs:
            pending.append(self._pool.submit(job))
            if len(pending) > AHEAD * self.count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
