"""Signals to a command: one line, a status, and no traceback, whenever they come."""

import itertools
import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SCRIPTS = (
    ("train_lora.py",),
    ("evaluate_lora.py",),
    ("training/extract_features_finetuning.py",),
    ("training/make_demo_videos.py",),
    ("training/split_videos_for_finetuning.py",),
    ("training/compare_settings.py",),
    ("training/pretrain_tiny.py",),
    ("-m", "mmaudio.generation"),
    ("-m", "mmaudio.pipeline.torchrun"),
)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(command, ignored=()):
    """A process of its own group, with Python's usual handlers except for signals that it is to ignore.

    Its pipes are small, so that it cannot run far ahead of who reads them.
    """

    def prepare():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=prepare,
        pipesize=4096,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "number"),
    list(zip(SCRIPTS, itertools.cycle(SIGNALS), strict=False)),
    ids=lambda value: value[-1] if value in SCRIPTS else None,
)
def test_a_signal_during_the_imports_is_one_line(script, number):
    with start(["-X", "importtime", *script]) as process:
        assert any("numpy" in line or "torch" in line for line in process.stderr), "it imported nothing large"
        os.killpg(process.pid, number)
        rest = [line for line in process.stderr if not line.startswith("import time:")]
    cause = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert rest == [f"{cause}; the same command continues from here\n"]
    assert process.returncode == 128 + number


WAITING = """
import os, sys, time
from mmaudio import cli
from mmaudio.utils import interrupts
sleep = time.sleep
def repeat_time(_):
    os.write(1, b"repeats are absorbed\\n")
    os.read(0, 1)
def work(_):
    try:
        print("here", flush=True)
        while True:
            sleep(0.1)
    finally:
        while "slow" in sys.argv:
            print("cleaning", flush=True)
            os.read(0, 1)
if "slow" in sys.argv:  # the time of repeated signals passes with a byte of input
    interrupts.time.sleep = repeat_time
cli.run(work)
"""


def go_on(process):
    """Let the process go on to its next line of output."""
    process.stdin.write(".")
    process.stdin.flush()
    return process.stdout.readline()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_work_is_one_line(number):
    with start(["-c", WAITING]) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        printed, errors = process.communicate()
    assert (printed, errors.count("\n"), process.returncode) == ("", 1, 128 + number)
    assert errors.endswith("the same command continues from here\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_kills_and_one_that_comes_twice_at_once_does_not(number):
    """As `timeout` sends it."""
    with start(["-c", WAITING, "slow"]) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(number)
        assert process.stdout.readline() == "repeats are absorbed\n"
        process.send_signal(number)
        assert go_on(process) == go_on(process) == "cleaning\n"
        process.send_signal(number)
        assert process.wait() == -number


@pytest.mark.slow
def test_the_same_request_by_another_signal_does_not_kill():
    """As the pipeline sends it after Ctrl-C."""
    with start(["-c", WAITING, "slow"]) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "repeats are absorbed\n"
        assert go_on(process) == "cleaning\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "repeats are absorbed\n"
        process.stdin.write(".")
        assert go_on(process) == "cleaning\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT


@pytest.mark.slow
def test_an_ignored_signal_stays_ignored():
    with start(["-c", WAITING], ignored=[signal.SIGHUP]) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM


CLOSED_PIPE = """
import os, signal, time
from mmaudio import cli
def work(_):
    print("buffered")
    os.kill(os.getpid(), signal.SIGINT)
cli.run(work)
"""


@pytest.mark.slow
def test_a_reader_that_ctrl_c_ended_too_is_no_error():
    """As in `command | tee log`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-c", CLOSED_PIPE],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": ""},
        check=False,
    )
    os.close(write_end)
    assert (result.returncode, result.stderr) == (130, "interrupted; the same command continues from here\n")


@pytest.mark.slow
def test_a_closed_terminal_is_no_error():
    script = "import time\nfrom mmaudio import cli\n"
    script += "def work(_):\n    print('here', flush=True)\n    while True:\n        time.sleep(0.1)\ncli.run(work)"
    terminal, child_terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=child_terminal,
        stdout=child_terminal,
        stderr=child_terminal,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(child_terminal)
    assert os.read(terminal, 100).startswith(b"here")
    os.close(terminal)  # the kernel sends SIGHUP
    assert process.wait() == 128 + signal.SIGHUP
