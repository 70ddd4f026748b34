"""Quoting of values for Hydra's override grammar."""

from __future__ import annotations

import re

NUMBER = r"[+-]?((\d[\d_]*\.?[\d_]*|\.[\d_]+)(e[+-]?[\d_]+)?|inf|nan)"
NON_TEXT = re.compile(f"{NUMBER}|true|false|null", re.ASCII | re.IGNORECASE)
"""Words that Hydra parses as a number, a boolean or null: 2024_05_12 is twenty million."""


def quote_value(value: object) -> str:
    r"""Format `value` so that Hydra parses the same value: quoted unless it is a number, a plain word or a path.

    Plain words are ASCII. Within quotes a backslash escapes only a quote or the end, and `\${` prevents OmegaConf's
    interpolation.
    """
    text = str(value).lower() if isinstance(value, bool) else str(value)
    unambiguous = isinstance(value, int | float) or not NON_TEXT.fullmatch(text)
    if unambiguous and re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"
