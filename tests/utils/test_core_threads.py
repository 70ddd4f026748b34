"""Threads that share the cores: order, errors, and the end of what still runs."""

import threading
from functools import partial

import pytest
import torch

from mmaudio.utils import core_threads
from mmaudio.utils.core_threads import CoreThreads
from mmaudio.utils.progress import Progress

CPU = torch.device("cpu")


@pytest.fixture
def four_cores():
    """Torch as on a machine of four cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_items_run_at_once_in_order_each_with_a_share_of_the_cores(four_cores, monkeypatch):
    monkeypatch.setattr(core_threads, "MAX_THREADS", 2)
    meeting = threading.Barrier(2, timeout=600)

    def job(number):
        meeting.wait()  # passes only where two run at once
        return number, torch.get_num_threads()

    with CoreThreads(CPU) as threads:
        assert list(threads.run(partial(job, number) for number in range(6))) == [(number, 2) for number in range(6)]
    assert torch.get_num_threads() == 4
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4]


def test_one_core_computes_without_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with CoreThreads(CPU) as threads:
        assert list(threads.run([threading.current_thread] * 2)) == [threading.main_thread()] * 2


def test_few_items_are_drawn_ahead(four_cores):
    drawn = []

    def jobs():
        for number in range(100):
            drawn.append(number)
            yield partial(int, number)

    with CoreThreads(CPU) as threads:
        results = threads.run(jobs())
        assert next(results) == 0 and len(drawn) <= core_threads.AHEAD * threads.count + 1


def test_an_error_ends_the_other_items_at_their_next_step(four_cores):
    has_begun, steps = threading.Event(), []

    def endless(counter):
        for step in counter.count(iter(int, 1)):
            has_begun.set()
            steps.append(step)

    def broken():
        assert has_begun.wait(600)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), CoreThreads(CPU) as threads, Progress(1, "steps") as counter:
        list(threads.run([broken, partial(endless, counter)]))
    assert steps
