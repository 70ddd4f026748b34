"""Bars on a terminal, plain lines elsewhere."""

import io
import re
import sys
import time

from mmaudio.utils import heartbeat, progress
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


def test_items_are_counted_with_rate_and_remaining_time():
    counter = progress.Progress(40, "videos")
    assert counter.format_line(9.0) == "videos: 0/40, 9 s so far"
    counter.advance(10)
    assert counter.format_line(20.0) == "videos: 10/40, 0.50/s, 60 s left"


def test_one_slow_item_is_not_silent(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(heartbeat, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(heartbeat, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(heartbeat, "BRIEF_SECONDS", 0.0)
    for _ in progress.progress(["item"], 1, "videos"):
        while "\n" not in output.getvalue():
            time.sleep(0.001)
    assert re.match(r"videos: 0/1, \d+ s so far\n", output.getvalue())


def test_bytes_are_formatted():
    sizes = (0, 999, 1000, 629_134_576, 999_600_000, 4_120_008_672)
    assert [format_bytes(size) for size in sizes] == ["0 bytes", "999 bytes", "1 kB", "629 MB", "1.0 GB", "4.1 GB"]
