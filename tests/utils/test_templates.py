"""Pages show control characters as the terminal does, and markup as it is."""

from __future__ import annotations

import pytest
import report_results
from markupsafe import Markup

from mmaudio.data.clips import LeftOut
from mmaudio.data.contact_sheet import write_contact_sheet
from mmaudio.data.folder_split import SplitResult
from mmaudio.report.render import write_report
from mmaudio.utils.templates import load_templates

NAME = "a\nb\u202e4pm.exe\x1b[31m<i>"
SHOWN = r"a\nb\u202e4pm.exe\x1b[31m&lt;i&gt;"


def test_text_is_escaped_and_markup_stays():
    template = load_templates("mmaudio.report").from_string("{{ name }} {{ number }}{{ markup }}")
    assert template.render(name=NAME, number=3, markup=Markup("<b>\n</b>")) == f"{SHOWN} 3<b>\n</b>"


def test_the_contact_sheet_shows_control_characters_escaped(tmp_path):
    result = SplitResult([], [LeftOut(NAME, "no video")], 1, 1, [f"{NAME}: a note"])
    write_contact_sheet(tmp_path / "page.html", tmp_path, result)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count(SHOWN) == 2 and NAME not in page and "\u202e" not in page


@pytest.mark.slow
def test_the_report_shows_control_characters_escaped(tmp_path):
    results = report_results.make_results(tmp_path, 1, 1)
    clip = results.clips[0].clip
    object.__setattr__(clip, "video", NAME)
    object.__setattr__(clip, "caption", NAME)
    write_report(tmp_path / "index.html", results, None, report_results.make_provenance(results))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count(SHOWN) > 3 and "\u202e" not in page and "\x1b" not in page
