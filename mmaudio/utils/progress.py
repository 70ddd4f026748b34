"""How long work shows itself: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
UNITS = (("GB", 1e9, ".1f"), ("MB", 1e6, ".0f"), ("kB", 1e3, ".0f"))
PLAIN_LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
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


class PlainBar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
    """A tqdm bar that is a plain line every ten seconds."""

    monitor_interval = 0  # no thread

    def __init__(self, *arguments: Any, **options: Any) -> None:
        own = {"disable": False, "mininterval": PLAIN_SECONDS, "miniters": 1, "leave": False, "file": io.StringIO()}
        super().__init__(*arguments, **{**options, **own})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print the amount, the rate and the time left, unless nothing or all is done."""
        at = self.format_dict
        if msg is None and at["initial"] < at["n"] and at["n"] != at["total"]:  # msg is empty at the end
            print(self.format_meter(**{**at, "bar_format": PLAIN_LINE}), flush=True)
        return True

    def clear(self, nolock: bool = False) -> None:
        """A printed line stays."""


def bar_class() -> type[tqdm]:  # type: ignore[type-arg, unused-ignore]
    """The kind of progress bar that suits the output."""
    return tqdm if sys.stderr.isatty() else PlainBar


def progress_bytes(blocks: Iterable[bytes], total: int | None, done: int, what: str) -> Iterator[bytes]:
    """Pass the blocks of a file of `total` bytes through, `done` of which were there before, as `progress` does."""
    with bar_class()(total=total, initial=done, desc=what, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        for block in blocks:
            yield block
            bar.update(len(block))


def amount(size: float) -> str:
    """Bytes in words: `601 MB`, `3.9 GB`."""
    for unit, bytes_, form in UNITS:
        if size >= 0.9995 * bytes_:
            return f"{size / bytes_:{form}} {unit}"
    return f"{size:.0f} bytes"
