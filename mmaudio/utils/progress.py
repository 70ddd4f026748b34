"""Progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from tqdm import tqdm

from mmaudio.utils.heartbeat import Heartbeat, has_bars, print_line
from mmaudio.utils.terminal import print_lines

T = TypeVar("T")
UNITS = (("GB", 1e9, ".1f"), ("MB", 1e6, ".0f"), ("kB", 1e3, ".0f"))
PLAIN_LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
PLAIN_SECONDS = 10.0
"""Seconds between two lines if the output is not a terminal."""


class Progress:
    """A count of `total` items, as a context: a progress bar on a terminal, elsewhere a line now and then.

    The bar of an `inner` one, within another, shows up after a second and goes at the end.
    """

    def __init__(self, total: int, label: str, inner: bool = False) -> None:
        self.total, self.label, self.num_done = total, label, 0
        self._lock, self._is_closed = threading.Lock(), False
        options = {"leave": False, "delay": 1.0} if inner else {}
        self._bar = tqdm(total=total, desc=label, dynamic_ncols=True, **options) if has_bars() else None
        self._heartbeat = Heartbeat(self.format_line, self._show)

    def __enter__(self) -> Progress:
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._is_closed = True
        self._heartbeat.__exit__(*error)
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1) -> None:
        """Count items that are done; several threads may."""
        with self._lock:
            self.num_done += count
            if self._bar is not None:
                self._bar.update(count)

    def count(self, items: Iterable[T], weight: int = 1) -> Iterator[T]:
        """Yield items, and count each when it is done; CancelledError in a thread that goes on after the context."""
        for item in items:
            if self._is_closed:
                raise CancelledError
            yield item
            self.advance(weight)

    def format_line(self, elapsed: float) -> str:
        """The count, the rate and the remaining time, `elapsed` seconds after the start."""
        line = f"{self.label}: {self.num_done}/{self.total}, "
        if not self.num_done or not elapsed:
            return f"{line}{elapsed:.0f} s so far"
        rate = self.num_done / elapsed
        return f"{line}{rate:.2f}/s, {max(0, self.total - self.num_done) / rate:.0f} s left"

    def _show(self, line: str) -> None:
        if self._bar is None:
            print_line(line)
        else:
            self._bar.refresh()  # the seconds go on, so that it is seen to run


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield `items` with a progress bar on a terminal, or with a plain line now and then."""
    with Progress(total, label) as counter:
        yield from counter.count(items)


def working(text: str | Callable[[float], str]) -> Heartbeat:
    """A heartbeat whose lines stand above the progress bars, if any."""
    return Heartbeat(text, lambda line: tqdm.write(line) if has_bars() else print_line(line))


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
    return tqdm if has_bars() else PlainBar


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
