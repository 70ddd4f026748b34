"""Several processes at once: what a failed one output, and its status, are what a user gets."""

import os
import signal
import subprocess
import sys

import pytest


def start(script):
    command = [sys.executable, "-m", "mmaudio.pipeline.torchrun", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def only(output, line):
    """Whether `line` was output, by one process or by both, and nothing else."""
    return line in output and not output.replace(line, "").strip()


@pytest.mark.slow
def test_only_the_error_and_status_of_a_failed_process_remain(tmp_path):
    script = tmp_path / "job.py"
    fail = "def main(arguments):\n    raise errors.ConfigError('rank=0: too small')\ncli.run(main)\n"
    script.write_text(f"from mmaudio import cli, errors\n{fail}")
    process = start(script)
    output = process.communicate()[1]
    assert process.returncode == 2 and only(output, "error: rank=0: too small")


@pytest.mark.slow
def test_success_is_status_zero(tmp_path):
    script = tmp_path / "job.py"
    script.write_text("import os\nos.write(1, f'rank {os.environ[\"RANK\"]}\\n'.encode())\n")
    process = start(script)
    output = process.communicate()[0]
    assert process.returncode == 0 and sorted(output.split("\n")) == ["", "rank 0", "rank 1"]


WAITING = r"""
import os, time
from mmaudio import cli
def work(_):
    try:
        os.write(1, b"here\n")
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1.0)
        os.write(1, b"saved\n")
        raise
cli.run(work)
"""


@pytest.mark.slow
def test_an_interrupt_comes_once_and_is_no_error(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(WAITING)
    process = start(script)
    assert process.stdout.readline() == "here\n" and process.stdout.readline() == "here\n"
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate()
    assert process.returncode == 130 and "saved" in printed
    assert only(errors, "interrupted; the same command continues from here")
