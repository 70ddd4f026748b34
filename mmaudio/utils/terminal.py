"""Lines for the terminal and for log files, with control characters escaped."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from mmaudio.utils.escapes import escape_controls


def print_lines(*lines: object, file: TextIO | None = None, flush: bool = False) -> None:
    """Print each of `lines` as one line, on standard output where there is no `file`."""
    stream = file or sys.stdout
    for line in lines:
        print(f"{escape_controls(str(line))}\n", end="", file=stream)  # in one piece: threads print, too
    if flush:
        stream.flush()


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error's traceback on standard error, its causes first; a `sys.excepthook`.

    Python's own prints the lines of a message as they are, also of one with a file's name in it.
    """
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.insert(0, link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    for number, link in enumerate(links):
        head = "Traceback (most recent call last):" if number == 0 else "which led to:"
        calls = "".join(traceback.format_tb(link.__traceback__)).split("\n")[:-1]
        print_lines(head, *calls, f"{type(link).__name__}: {link}", file=sys.stderr)


def join_command(command: Sequence[str]) -> str:
    """A command as one line that a shell reads: words with control characters stand in `$'...'`."""
    return " ".join(_quote_word(word) for word in command)


def _quote_word(word: str) -> str:
    if word == escape_controls(word):
        return shlex.quote(word)
    return "$'" + escape_controls(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"
