"""When a block of code says what it does, by a clock of the test's own."""

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest
from helpers import ROOT

from mmaudio.utils import heartbeat
from mmaudio.utils.heartbeat import Heartbeat


@pytest.fixture
def quiet_heartbeat(monkeypatch):
    """Here the heartbeat is what is tested."""
    monkeypatch.setattr(heartbeat, "QUIET_SECONDS", 8.0)


def test_the_environment_sets_the_longest_silence():
    code = "from mmaudio.cli import handle_signals, heartbeat; handle_signals(); print(heartbeat.quiet_seconds(0.0))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MMAUDIO_QUIET_SECONDS": "30"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "30.0\n"


class Clock:
    """A clock that moves when it is told to, and the lines that were written."""

    def __init__(self):
        self.now, self.lines = 0.0, []

    def run(self, block, seconds):
        """Let time pass in a block that looks at the clock every second."""
        for _ in range(seconds):
            self.now += 1.0
            block.beat()

    def block(self, text):
        return Heartbeat(text, self.lines.append, lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(heartbeat, "POLL_SECONDS", 1e6)  # the thread never looks
    monkeypatch.setattr(Heartbeat, "last_line", 0.0)
    return Clock()


def test_a_short_block_says_nothing_and_a_long_one_does_before_ten_seconds_of_silence(clock):
    with clock.block("loading") as block:
        clock.run(block, 7)
        assert clock.lines == []
        clock.run(block, 13)
    assert clock.lines == ["loading: 8 s so far", "loading: 16 s so far"]


def test_several_blocks_that_are_silent_together_are_not(clock):
    for name in ("imports", "weights", "features"):
        with clock.block(name) as block:
            clock.run(block, 6)
    assert clock.lines == ["weights: 2 s so far", "features: 4 s so far"]


def test_the_innermost_block_speaks_for_all(clock):
    with clock.block("training") as outer:
        clock.run(outer, 5)
        with clock.block(lambda elapsed: f"samples after {elapsed:.0f} s") as inner:
            clock.run(outer, 20)
            assert clock.lines == []
            clock.run(inner, 1)
        clock.run(outer, 8)
    assert clock.lines == ["training: 26 s so far; samples after 21 s", "training: 34 s so far"]


@pytest.mark.parametrize(("is_terminal", "most"), [(False, 200), (True, 5000)])
def test_a_file_gets_a_line_a_minute_in_the_long_run(clock, monkeypatch, is_terminal, most):
    monkeypatch.setattr(heartbeat, "has_bars", lambda: is_terminal)
    with clock.block("training") as block:
        clock.run(block, 2 * 3600)
    assert 100 < len(clock.lines) < most and (len(clock.lines) > 800) == is_terminal


@pytest.mark.parametrize("columns", [0, 80])
def test_a_terminal_without_a_width_gets_lines(monkeypatch, columns):
    terminal, child_terminal = os.openpty()
    fcntl.ioctl(child_terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(child_terminal, "w") as stderr, monkeypatch.context() as patched:
        patched.setattr("sys.stderr", stderr)
        assert heartbeat.has_bars() == (columns > 0)
    os.close(terminal)
    assert not heartbeat.has_bars(), "the test's own output goes to a file"
