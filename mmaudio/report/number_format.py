"""Numbers as a report prints them."""

from __future__ import annotations

import math

ZERO = 5e-7
"""Absolute values below this are printed as zero."""
THIN_SPACE = "\u202f"
"""A narrow space that does not break."""


def format_number(value: float) -> str:
    """Three significant digits or more, at most six decimals; a true minus sign; a dash for NaN and infinity."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size < ZERO:
        return "0.000"
    decimals = 3 if size >= 0.1 else min(6, 2 - math.floor(math.log10(size)))
    text = f"{value:.{decimals}f}" if size < 10 else (f"{value:.4g}" if size < 1000 else f"{value:,.0f}")
    return text.replace("-", "−")


def format_signed(value: float) -> str:
    """`format_number` with a plus sign for positive values."""
    return ("+" if value >= ZERO else "") + format_number(value)


def format_percent(change: float, reference: float) -> str:
    """A change relative to `reference`, signed, with tenths below 10 %; empty where `reference` is about zero."""
    if abs(reference) < 1e-6:
        return ""
    share = 100 * change / abs(reference)
    text = f"{share:+.0f}" if abs(share) >= 9.95 else f"{share:+.1f}".replace("+0.0", "0").replace("-0.0", "0")
    return f"{text}{THIN_SPACE}%".replace("-", "−")


def format_sortable(value: float | None) -> str:
    """A number as tables are sorted by; empty where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.9g}"


def plural(number: int, noun: str) -> str:
    """A number and its noun, in the plural where needed."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
