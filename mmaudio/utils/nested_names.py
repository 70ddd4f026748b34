"""Nested settings by their dotted names."""

from __future__ import annotations

from typing import Any


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten `{"lora": {"rank": 4}}` to `{"lora.rank": 4}`."""
    values: dict[str, Any] = {}
    for name, value in nested.items():
        values |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return values
