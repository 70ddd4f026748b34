"""How long work shows itself: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
PLAIN_SECONDS = 10.0
"""Seconds between two lines where the output is no terminal."""


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass `items` through with a progress bar on a terminal, with a plain line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, dynamic_ncols=True)
        return
    start = said = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= PLAIN_SECONDS and count < total:
            said, rate = now, count / (now - start)
            print(f"{what}: {count}/{total}, {rate:.2f}/s, {(total - count) / rate:.0f} s left", flush=True)
