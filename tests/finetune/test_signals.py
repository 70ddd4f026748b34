"""Signals to a training run: the first lets it save, a second one ends it."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

TRAINING = """
import signal, sys
from mmaudio import cli
from mmaudio.finetune import signals
from mmaudio.utils import interrupts
def work(_):
    with signals.StopSignals() as stop:
        print("here", flush=True)
        while stop.received is None:
            signal.pause()
        print("saving", flush=True)
        while True:
            signal.pause()
if "repeat" in sys.argv:  # the same signal comes again amid the handler, and within the time that is waited
    interrupts.time.sleep = lambda _: signal.raise_signal(int(sys.argv[-1]))
    signals.leave_closed_terminal = signal.raise_signal
if "library" in sys.argv:
    work(None)
cli.run(work)
"""
LINE = "stopping: finishing this step, then saving; a second signal ends it at once, without saving\n"


def start(*arguments):
    """A process that waits for signals as training does, once it waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_a_command_and_one_that_comes_twice_at_once_does_not(number):
    with start("repeat", str(int(number))) as process:
        process.send_signal(number)
        assert [process.stdout.readline() for _ in range(3)] == ["\n", LINE, "saving\n"]
        process.send_signal(number)
        assert (process.wait(), process.stderr.read()) == (-number, "")


@pytest.mark.slow
def test_a_second_signal_is_a_keyboard_interrupt_in_a_program_of_ones_own():
    with start("library") as process:
        process.send_signal(signal.SIGTERM)
        assert [process.stdout.readline() for _ in range(3)] == ["\n", LINE, "saving\n"]
        process.send_signal(signal.SIGTERM)
        assert "KeyboardInterrupt" in process.stderr.read()
