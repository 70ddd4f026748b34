"""Several iterators produced at once: all items in each one's order, bounded ahead, errors and early ends."""

import threading
from contextlib import contextmanager
from contextvars import ContextVar

import pytest

from mmaudio.utils.producer_threads import SourceEnd, interleave

NUMBER = ContextVar("number", default=0)


def numbers(key, count, failure=None):
    for number in range(count):
        yield key, number
    if failure is not None:
        raise failure


@pytest.mark.parametrize("num_threads", [1, 3, 9])
def test_every_source_comes_whole_and_in_order(num_threads):
    sources = [(key, numbers(key, key)) for key in range(6)]
    entries = list(interleave(sources, num_threads, 2))
    for key in range(6):
        assert [item for source, item in entries if source == key] == [*numbers(key, key), SourceEnd()]
    assert len(entries) == sum(range(6)) + 6
    assert list(interleave([], num_threads, 1)) == []


def test_an_error_ends_its_source_alone_and_one_of_the_sources_ends_all():
    failure = ValueError("broken")
    ends = dict(
        entry
        for entry in interleave([(0, numbers(0, 2, failure)), (1, numbers(1, 2))], 2, 1)
        if isinstance(entry[1], SourceEnd)
    )
    assert ends == {0: SourceEnd(failure), 1: SourceEnd()}

    def sources():
        yield 0, numbers(0, 1)
        raise failure

    with pytest.raises(ValueError, match="broken"):
        list(interleave(sources(), 2, 1))


def test_items_ahead_are_bounded_and_threads_end_with_the_consumer():
    produced = []
    full = threading.Semaphore(0)

    def counting(key):
        for number in range(100):
            produced.append((key, number))
            full.release()
            yield number

    before = set(threading.enumerate())
    entries = interleave(((key, counting(key)) for key in range(9)), 3, 2)
    next(entries)
    for _ in range(1 + 2 + 3):  # with the consumer, in the queue, in the hands of the threads
        full.acquire()
    assert len(produced) == 6 and len({key for key, _ in produced}) <= 3
    entries.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("producer")]
    assert len(produced) < 30


def test_every_thread_has_a_context_of_its_own():
    @contextmanager
    def numbered():
        token = NUMBER.set(7)
        try:
            yield
        finally:
            NUMBER.reset(token)

    def reading():
        yield NUMBER.get()

    entries = interleave([(key, reading()) for key in range(4)], 2, 4, numbered)
    assert [item for _, item in entries if not isinstance(item, SourceEnd)] == [7] * 4
    assert NUMBER.get() == 0
