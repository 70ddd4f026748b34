"""The command line of the page."""

import importlib.util

import pytest

from mmaudio.app import server
from mmaudio.errors import ConfigError


def test_another_host_needs_a_password(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(server.PASSWORD_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0.*--password"):
        server.main(["--host", "0.0.0.0"])
    with pytest.raises(ConfigError, match="8 or more"):
        server.main(["--host", "0.0.0.0", "--password", "short"])
    monkeypatch.setenv(server.PASSWORD_VARIABLE, "long enough")
    assert server.read_password("0.0.0.0", None) == "long enough"
    assert list(tmp_path.iterdir()) == []


def test_without_gradio_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "mmaudio-lora\[ui\]"'):
        server.main([])
    assert list(tmp_path.iterdir()) == []
