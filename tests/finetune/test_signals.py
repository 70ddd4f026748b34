"""Signals to a training run: the first lets it save, a second one ends it."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

TRAINING = """
import os, signal, sys, time
from types import SimpleNamespace
from mmaudio import cli
from mmaudio.finetune import signals
from mmaudio.utils import interrupts

repeats = 2 * [int(sys.argv[1])]
def repeat(*_):
    if repeats:
        os.kill(os.getpid(), repeats.pop())
if repeats[0]:  # the same signal comes again: within the handler of the first, and in the time that passes there
    signals.leave_closed_terminal = repeat
    interrupts.time = SimpleNamespace(sleep=repeat)
def work(_):
    with signals.StopSignals() as stop:
        print("here", flush=True)
        while stop.received is None:
            time.sleep(0.01)
        print("saving", flush=True)
        while True:
            time.sleep(0.01)
if "library" in sys.argv:
    work(None)
cli.run(work)
"""
LINE = "stopping: finishing this step, then saving; a second signal ends it at once, without saving\n"


def start(repeat, *arguments):
    """A process that waits for signals as training does, once it waits; `repeat` is the signal that it gets again."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(int(repeat)), *arguments],
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
    with start(number) as process:
        process.send_signal(number)
        assert [process.stdout.readline() for _ in range(3)] == ["\n", LINE, "saving\n"]
        process.send_signal(number)
        assert (process.wait(), process.stderr.read()) == (-number, "")


@pytest.mark.slow
def test_a_second_signal_is_a_keyboard_interrupt_in_a_program_of_ones_own():
    with start(0, "library") as process:
        process.send_signal(signal.SIGTERM)
        assert [process.stdout.readline() for _ in range(3)] == ["\n", LINE, "saving\n"]
        process.send_signal(signal.SIGTERM)
        assert "KeyboardInterrupt" in process.stderr.read()
