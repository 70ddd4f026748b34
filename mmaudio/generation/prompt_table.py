"""Prompts that change over time, from a table with the columns from, to and prompt.

    from    to      prompt
    0       12.5    rain on a tin roof
    12.5    1:00    a dog barks

Times are seconds, or minutes and seconds, from the beginning of the audio; the last row may leave `to` empty.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from mmaudio.errors import DataError
from mmaudio.utils.files import read_text, table_columns, table_rows

COLUMNS = ("from", "to", "prompt")
TIME_TOLERANCE = 0.05
"""Seconds by which the end of one prompt and the beginning of the next may differ, as times are often rounded."""


@dataclass(frozen=True)
class TimedPrompt:
    """A prompt from `start` to `end`, in seconds from the beginning of the audio."""

    start: float
    end: float
    """Infinity: to the end of the audio."""
    text: str

    @property
    def last_time(self) -> float | None:
        """`end`, or None for the end of the audio."""
        return self.end if self.end < math.inf else None


def read_prompts(path: Path) -> tuple[TimedPrompt, ...]:
    """Read a prompts table; DataError where times are no times, leave a gap, overlap, or a prompt is empty."""
    text = read_text(path)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    columns = table_columns(path, text, delimiter)
    if any(column not in columns for column in COLUMNS):
        raise DataError(f"{path.name}: the first line names {', '.join(columns)}; needed are: {', '.join(COLUMNS)}")
    prompts: list[TimedPrompt] = []
    for number, cells in table_rows(path, text, delimiter):
        place = f"{path.name}, line {number}"
        start, end = (_parse_time(cells[column] or "", place, column) for column in COLUMNS[:2])
        prompts.append(TimedPrompt(start, end, (cells["prompt"] or "").strip()))
        _check_row(prompts, place)
    if not prompts:
        raise DataError(f"{path.name}: no row below the first line; a row is a time, a time and a prompt")
    return tuple(prompts)


def check_prompts_end(prompts: tuple[TimedPrompt, ...], seconds: float) -> None:
    """Check that the prompts reach from the beginning to the end of `seconds` of audio, and not beyond; DataError."""
    end = prompts[-1].end
    if end != math.inf and abs(end - seconds) > max(TIME_TOLERANCE, 0.5 if end > seconds else 0.0):
        kind = "beyond the end of the audio" if end > seconds else "and the audio goes on"
        raise DataError(f"the prompts end at {end:g} s, {kind} at {seconds:g} s; an empty `to` is the end")
    for prompt in prompts:
        if prompt.start >= seconds:
            raise DataError(f"the prompt {prompt.text!r} begins at {prompt.start:g} s, the audio ends at {seconds:g} s")


def _check_row(prompts: list[TimedPrompt], place: str) -> None:
    prompt = prompts[-1]
    expected_start = prompts[-2].end if len(prompts) > 1 else 0.0
    if not prompt.text:
        raise DataError(f"{place}: the prompt is empty")
    if prompt.end <= prompt.start:
        raise DataError(f"{place}: it ends at {prompt.end:g} s, and begins at {prompt.start:g} s")
    if prompt.start < expected_start - TIME_TOLERANCE:
        end = "goes on to the end" if expected_start == math.inf else f"ends at {expected_start:g} s"
        raise DataError(f"{place}: it begins at {prompt.start:g} s, and the row above {end}")
    if prompt.start > expected_start + TIME_TOLERANCE:
        raise DataError(f"{place}: no prompt from {expected_start:g} s to {prompt.start:g} s")


def _parse_time(text: str, place: str, column: str) -> float:
    """Seconds of `12.5` or `1:02.5`; infinity for an empty `to`."""
    text = text.strip()
    if not text and column == "to":
        return math.inf
    match = re.fullmatch(r"(?:(\d{1,4}):)?(\d{1,6}(?:\.\d{1,6})?)", text)
    if match is None:
        raise DataError(f"{place}: {column} is {text!r}; seconds such as 12.5, or 1:02.5")
    return 60 * int(match[1] or 0) + float(match[2])
