"""Working ahead: same items, bounded, errors handed on, no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest

from mmaudio.errors import DataError
from mmaudio.utils.prefetch import prefetched


def test_the_same_items_in_the_same_order():
    assert list(prefetched(iter(range(50)), 3)) == list(range(50))
    assert list(prefetched(iter(()), 1)) == []


def test_no_more_is_made_than_asked_for():
    made = []
    items = prefetched((made.append(n) or n for n in range(100)), 2)
    assert next(items) == 0
    time.sleep(0.1)
    assert len(made) <= 4  # one taken, two waiting, one in hand
    items.close()


def test_an_error_arrives_after_the_items_before_it():
    def failing():
        yield 1
        raise DataError("cut off")

    items = prefetched(failing(), 2)
    assert next(items) == 1
    with pytest.raises(DataError, match="cut off"):
        next(items)


def test_a_consumer_that_stops_early_leaves_no_thread():
    items = prefetched(iter(range(1000)), 1)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
