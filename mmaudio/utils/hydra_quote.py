"""A value written so that Hydra reads the same value back."""

from __future__ import annotations

import re

NUMBER = r"[+-]?((\d[\d_]*\.?[\d_]*|\.[\d_]+)(e[+-]?[\d_]+)?|inf|nan)"
NO_TEXT = re.compile(f"{NUMBER}|true|false|null", re.ASCII | re.IGNORECASE)
"""Words that Hydra reads as a number, a truth value or nothing: 2024_05_12 is twenty million."""


def quoted(value: object) -> str:
    r"""`value` in Hydra's grammar of overrides: quoted unless it is a number, or a text that is a plain word or path.

    Its words are ASCII's; in quotes a backslash counts only before a quote or the end, and `\${` keeps OmegaConf from
    looking a key up.
    """
    text = str(value).lower() if isinstance(value, bool) else str(value)
    word = isinstance(value, int | float) or not NO_TEXT.fullmatch(text)
    if word and re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"
