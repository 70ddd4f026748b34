"""Control characters as escape sequences: no name and no server's answer can end a line or move the cursor."""

from __future__ import annotations

import re

CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""C0, DEL, C1, line separators, and characters that reverse the direction of text, as ranges of a pattern."""
_CONTROL = re.compile(f"[{CONTROLS}]")
_CELL_CONTROL = re.compile(f"[{CONTROLS}\ud800-\udfff]")
"""Those, and bytes of a name that are not UTF-8, as Python has them."""
_CELL_ESCAPE = re.compile(r"\\(?:x([01][0-9a-f]|5c|7f|[89][0-9a-f])|u(202[89a-e]|206[6-9]|d[89a-f][0-9a-f]{2}))")


def escape_controls(text: str) -> str:
    r"""`text` with CONTROLS as Python writes them, such as `\n`, `\x1b` and `\u202e`."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def encode_cell(text: str) -> str:
    r"""`text` for a table's cell: CONTROLS as `\x0a` or `\u202e`, and `\x5c` for a backslash before such a sequence."""
    text = _CELL_ESCAPE.sub(lambda match: rf"\x5c{match[0][1:]}", text)
    return _CELL_CONTROL.sub(_escape_for_cell, text)


def _escape_for_cell(match: re.Match[str]) -> str:
    code = ord(match[0])
    return rf"\x{code:02x}" if code < 0x100 else rf"\u{code:04x}"


def decode_cell(text: str) -> str:
    """The text of which `encode_cell` makes `text`."""
    return _CELL_ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), text)
