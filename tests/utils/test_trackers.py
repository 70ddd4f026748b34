"""Trackers: the real packages, offline; names that are unknown, packages that are absent."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

from mmaudio.errors import ConfigError
from mmaudio.utils.trackers import TRACKERS, check_trackers


def test_an_unknown_tracker_is_refused():
    check_trackers(list(TRACKERS))
    with pytest.raises(ConfigError, match=r"^--trackers: there is no 'wandd'; there are tensorboard, wandb, trackio$"):
        check_trackers(["wandd"], "--trackers")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_an_extra_that_is_not_installed_is_a_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed; pip install 'mmaudio-lora\[{name}\]'"):
        check_trackers(["tensorboard", name])


NO_LOGIN = """
import sys
from pathlib import Path
from mmaudio.errors import MMAudioError
from mmaudio.utils.trackers import TrackedRun, open_trackers
try:
    open_trackers(["wandb"], TrackedRun(Path(sys.argv[1]), "dogs"))
except MMAudioError as error:
    print(error)
"""
"""In a process of its own: wandb keeps the mode of the first run of a process."""


@pytest.mark.slow
def test_without_a_login_wandb_is_a_line(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    environment |= {"WANDB_MODE": "online", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NO_LOGIN, str(tmp_path)]
    printed = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"wandb: No API key configured.*; log in .* or take another tracker\n", printed)
