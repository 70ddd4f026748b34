"""Lines for the terminal and for log files, with control characters escaped."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TextIO

from mmaudio.utils.escapes import escape_controls


def print_lines(*lines: object, file: TextIO | None = None, flush: bool = False) -> None:
    """Print each of `lines` as one line, on standard output where there is no `file`."""
    stream = file or sys.stdout
    for line in lines:
        print(f"{escape_controls(str(line))}\n", end="", file=stream)  # in one piece: threads print, too
    if flush:
        stream.flush()


def join_command(command: Sequence[str]) -> str:
    """A command as one line that a shell reads: words with control characters stand in `$'...'`."""
    return " ".join(_quote_word(word) for word in command)


def _quote_word(word: str) -> str:
    if word == escape_controls(word):
        return shlex.quote(word)
    return "$'" + escape_controls(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"
