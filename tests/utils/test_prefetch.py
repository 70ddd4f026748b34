"""Working ahead: same items, bounded, errors handed on, no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest

from mmaudio.errors import DataError
from mmaudio.utils.prefetch import prefetch


def test_the_same_items_in_the_same_order():
    assert list(prefetch(iter(range(50)), 3)) == list(range(50))
    assert list(prefetch(iter(()), 1)) == []


def test_at_most_the_given_number_of_items_is_prefetched():
    produced = []
    items = prefetch((produced.append(n) or n for n in range(100)), 2)
    assert next(items) == 0
    time.sleep(0.1)
    assert len(produced) <= 4  # one taken, two waiting, one in hand
    items.close()


def test_an_error_is_raised_after_the_preceding_items():
    def failing():
        yield 1
        raise DataError("cut off")

    items = prefetch(failing(), 2)
    assert next(items) == 1
    with pytest.raises(DataError, match="cut off"):
        next(items)


def test_a_consumer_that_stops_early_leaves_no_thread():
    before = set(threading.enumerate())
    items = prefetch(iter(range(1000)), 1)
    next(items)
    items.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "prefetch"]
