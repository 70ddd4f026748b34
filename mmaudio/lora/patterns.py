"""Matching of regular expressions in bounded time, since those in an adapter's file may be a stranger's.

For example:

    names = ["fused_blocks.0.attn.qkv", "fused_blocks.0.ffn.w1"]
    match_names({"*qkv": r"(.*\\.)?[^.]*qkv"}, names)    # {"*qkv": ["fused_blocks.0.attn.qkv"]}
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

import regex

from mmaudio.errors import ConfigError

MAX_LENGTH = 500
"""Characters of a pattern; names of layers have up to 50."""
MATCH_SECONDS = 10.0
"""Processor time of one call of `match_names`; the patterns of an adapter take milliseconds."""


def check_length(pattern: str) -> None:
    """Raise ConfigError for a pattern longer than MAX_LENGTH."""
    if len(pattern) > MAX_LENGTH:
        raise ConfigError(f"the pattern {pattern[:20]}... has {len(pattern)} characters, more than {MAX_LENGTH}")


def match_names(expressions: Mapping[str, str], names: Sequence[str]) -> dict[str, list[str]]:
    """The names that each pattern matches as a whole; `expressions` has the regular expressions by pattern.

    Raises ConfigError for a pattern that is not valid, and where matching takes longer than MATCH_SECONDS.
    """
    deadline = time.process_time() + MATCH_SECONDS
    matches = {}
    for pattern, expression in expressions.items():
        try:
            compiled = regex.compile(expression)
            matches[pattern] = [name for name in names if compiled.fullmatch(name, timeout=_seconds_to(deadline))]
        except TimeoutError as error:
            raise ConfigError(f"{pattern!r} takes too long to match; write it without repeats in repeats") from error
        except (regex.error, RecursionError) as error:
            raise ConfigError(f"{pattern!r} is not a valid pattern: {error}") from error
    return matches


def _seconds_to(deadline: float) -> float:
    return max(deadline - time.process_time(), sys.float_info.epsilon)
