"""The set-up of the environment: installed once, also where two runs start at the same time."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

INSTALLER = """#!/bin/sh
# Stands for Python: makes an environment whose interpreter is this file again, and notes what is installed.
case "$2" in
  venv) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  pip)
    echo installing >>"$LOG"
    read -r _ <"$GO"
    ;;
esac
"""
SET_UP = """
import sys
from pathlib import Path
from mmaudio.pipeline import environment
root = Path(sys.argv[1])
environment.ROOT, environment.VENV = root, root / ".venv"
environment.STAMP, environment.PYTHON = root / ".venv/.installed", root / ".venv/bin/python"
sys.executable = str(root / "python")
print(environment.install(), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a set-up in a clone of its own; its installer waits for a line in the file `go`."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "python").write_text(INSTALLER)
    (tmp_path / "python").chmod(0o755)
    os.mkfifo(tmp_path / "go")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LOG": str(tmp_path / "log"), "GO": str(tmp_path / "go")}
    command = [sys.executable, "-c", SET_UP, str(tmp_path)]
    return lambda: subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


@pytest.mark.slow
def test_two_set_ups_install_once(tmp_path, start):
    python = f"{tmp_path / '.venv/bin/python'}\n"
    with start() as first:
        assert "installing into" in first.stderr.readline()
        with start() as second:
            assert "another process installs into" in second.stdout.readline()
            (tmp_path / "go").write_text("\n")
            assert first.communicate() == (python, "== set up: done\n")
            assert second.communicate() == (python, "")
    assert (tmp_path / "log").read_text() == "installing\n"
    with start() as third:
        assert third.communicate() == (python, "")


@pytest.mark.slow
def test_a_signal_ends_the_installer_and_the_next_run_installs(tmp_path, start):
    with start() as process:
        assert "installing into" in process.stderr.readline()
        while not (tmp_path / "log").exists():
            assert process.poll() is None
        process.terminate()
        assert process.wait() != 0
    with start() as process:
        assert "installing into" in process.stderr.readline()
        (tmp_path / "go").write_text("\n")
        assert process.communicate()[0] == f"{tmp_path / '.venv/bin/python'}\n"
