"""Checks of settings' values, with the name of the setting in the error."""

from __future__ import annotations

import math

from mmaudio.errors import ConfigError


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
