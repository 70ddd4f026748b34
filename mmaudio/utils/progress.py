"""Progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from mmaudio.utils.terminal import print_lines

T = TypeVar("T")
UNITS = (("GB", 1e9, ".1f"), ("MB", 1e6, ".0f"), ("kB", 1e3, ".0f"))
PLAIN_LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
PLAIN_SECONDS = 10.0
"""Seconds between two lines if the output is not a terminal."""


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield `items` with a progress bar on a terminal, or with a plain line every ten seconds."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=label, dynamic_ncols=True)
        return
    start = last_printed = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last_printed >= PLAIN_SECONDS and count < total:
            last_printed, rate = now, count / (now - start)
            print_lines(f"{label}: {count}/{total}, {rate:.2f}/s, {(total - count) / rate:.0f} s left", flush=True)


class PlainBar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
    """A tqdm bar that prints a plain line every ten seconds."""

    monitor_interval = 0  # no thread

    def __init__(self, *arguments: Any, **options: Any) -> None:
        plain_options = {
            "disable": False,
            "mininterval": PLAIN_SECONDS,
            "miniters": 1,
            "leave": False,
            "file": io.StringIO(),
        }
        super().__init__(*arguments, **{**options, **plain_options})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print amount, rate and remaining time, except at the start and at the end."""
        state = self.format_dict
        if msg is None and state["initial"] < state["n"] and state["n"] != state["total"]:  # msg is empty at the end
            print_lines(self.format_meter(**{**state, "bar_format": PLAIN_LINE}), flush=True)
        return True

    def clear(self, nolock: bool = False) -> None:
        """Do nothing: printed lines stay."""


def progress_bar_class() -> type[tqdm]:  # type: ignore[type-arg, unused-ignore]
    """The class of progress bar for the current output."""
    return tqdm if sys.stderr.isatty() else PlainBar


def progress_bytes(blocks: Iterable[bytes], total: int | None, initial: int, label: str) -> Iterator[bytes]:
    """Yield the blocks of a file of `total` bytes with a progress bar that starts at `initial` bytes."""
    with progress_bar_class()(
        total=total, initial=initial, desc=label, unit="B", unit_scale=True, dynamic_ncols=True
    ) as bar:
        for block in blocks:
            yield block
            bar.update(len(block))


def format_bytes(size: float) -> str:
    """Format a number of bytes: `601 MB`, `3.9 GB`."""
    for unit, unit_bytes, number_format in UNITS:
        if size >= 0.9995 * unit_bytes:
            return f"{size / unit_bytes:{number_format}} {unit}"
    return f"{size:.0f} bytes"
