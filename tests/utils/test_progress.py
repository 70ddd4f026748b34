"""Bars on a terminal, plain lines elsewhere."""

import re

from mmaudio.utils import progress
from mmaudio.utils.progress import format_bytes, progress_bytes


def test_bytes_are_passed_through_with_plain_lines_where_there_is_no_terminal(monkeypatch, capfd):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    blocks = [bytes(1_000_000)] * 3
    assert list(progress_bytes(blocks, 4_000_000, 1_000_000, "w.pth")) == blocks
    captured = capfd.readouterr()
    assert [line.split(",")[0] for line in captured.out.splitlines()] == [
        "w.pth: 2.00M of 4.00M",
        "w.pth: 3.00M of 4.00M",
    ]
    assert all(re.fullmatch(r".*, .*B/s, \d\d:\d\d left", line) for line in captured.out.splitlines())
    assert captured.err == ""


def test_work_of_seconds_prints_nothing(capfd):
    assert len(list(progress_bytes([b"a"] * 5, None, 0, "w.pth"))) == 5
    assert list(progress.progress(range(3), 3, "steps")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_bytes_are_formatted():
    sizes = (0, 999, 1000, 629_134_576, 999_600_000, 4_120_008_672)
    assert [format_bytes(size) for size in sizes] == ["0 bytes", "999 bytes", "1 kB", "629 MB", "1.0 GB", "4.1 GB"]
