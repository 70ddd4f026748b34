"""Trackers: the real packages, offline; names that are unknown, packages that are absent."""

import sys

import pytest

from mmaudio.errors import ConfigError, MMAudioError
from mmaudio.utils.trackers import TRACKERS, TrackedRun, check_trackers, open_trackers


def test_an_unknown_tracker_is_refused():
    check_trackers(list(TRACKERS))
    with pytest.raises(ConfigError, match=r"^--trackers: there is no 'wandd'; there are tensorboard, wandb, trackio$"):
        check_trackers(["wandd"], "--trackers")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_an_extra_that_is_not_installed_is_a_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{name} is not installed; pip install 'mmaudio-lora\[{name}\]'"):
        check_trackers(["tensorboard", name])


@pytest.mark.slow
def test_without_a_login_wandb_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(MMAudioError, match=r"^wandb: No API key configured.*; log in .* or take another tracker$"):
        open_trackers(["wandb"], TrackedRun(tmp_path, "dogs"))
