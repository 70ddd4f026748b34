"""A value written so that Hydra reads the same value back."""

from __future__ import annotations

import re


def quoted(value: object) -> str:
    r"""`value` in Hydra's grammar of overrides: quoted unless it is a plain word or path.

    Its words are ASCII's; in quotes a backslash counts only before a quote or the end, and `\${` keeps OmegaConf from
    looking a key up.
    """
    text = str(value)
    if re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"
