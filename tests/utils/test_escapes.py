"""Control characters are shown escaped, and names with them survive a table."""

from __future__ import annotations

import os
import unicodedata

import pytest

from mmaudio.utils.escapes import decode_cell, encode_cell, escape_controls

CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F))]
CONTROLS += [chr(code) for code in range(0x2066, 0x206A)]
NAMES = (
    *(f"a{control}b" for control in CONTROLS),
    r"C:\clips\new.mp4",
    r"two\x0alines.mp4",
    "\\x5c\\x0a\n\\",
    r"\u202e",
    "\\\n",
    os.fsdecode(b"latin\xe9.mp4"),
    "Tür, 門 und שלום.mp4",
)


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_a_control_character_is_shown_as_an_escape_sequence(control):
    assert unicodedata.category(control) in ("Cc", "Cf", "Zl", "Zp")
    assert escape_controls(f"a{control}b") == f"a{control.encode('unicode_escape').decode()}b"


def test_other_text_stays():
    for text in ("plain", "Tür, 門 und שלום.mp4", r"C:\new.mp4", "👩‍👩‍👧.mp4"):
        assert escape_controls(text) == encode_cell(text) == decode_cell(text) == text


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_in_a_cell_can_be_read_again(name):
    cell = encode_cell(name)
    assert decode_cell(cell) == name
    assert cell.encode().decode().isprintable()
