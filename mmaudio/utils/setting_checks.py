"""Checks of settings' values, with the name of the setting in the error."""

from __future__ import annotations

import math

from mmaudio.errors import ConfigError

OFF, AUTO, ON = "off", "auto", "on"
"""Ways to ask for folds by a word; ON is as AUTO on a GPU, whatever the machine and the number of videos."""


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError for a value below `least`."""
    if value < least:
        raise ConfigError(f"{name}={value}: at least {least}")


def check_between(name: str, value: float, low: float, high: float, low_open: bool = False) -> None:
    """Raise ConfigError for a value that is not finite, or outside of `low` to `high`; `low_open`: or `low` itself."""
    if not math.isfinite(value) or not low <= value <= high or (low_open and value == low):
        above = "above" if low_open else "at least"
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise ConfigError(f"{name}={value:g}: expected {above} {low:g}{upper}")


def parse_folds(name: str, text: str, fold: int | None = None) -> str:
    """A way to ask for folds: a word or a number from 2 on; `fold` is the only one to train.

    ConfigError, with the name of the setting as it is written (`--folds `, `folds=`), for anything else. YAML reads a
    bare `off` as false.
    """
    text = {"False": OFF, "True": ON}.get(text, text)
    is_number = text.isascii() and text.isdigit()
    if text not in (OFF, AUTO, ON) and not (is_number and int(text) >= 2):
        raise ConfigError(f"{name}{text}: {AUTO}, {ON}, {OFF}, or a number of folds from 2 on")
    if fold is not None and text == OFF:
        raise ConfigError(f"fold={fold}: one of how many? folds=5 or folds=on says it")
    if fold is not None:
        check_at_least("fold", fold, 1)
    return text
