"""The README's settings: a shell hands them on as they are, and they compose."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mmaudio.config import compose

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = {"weights_only=True"}
"""Not a setting."""
FOUND = re.findall(r"`([^`\n]+)`", README)
SETTINGS = [text for text in FOUND if re.match(r"'?[a-z][\w.]*=[^`]", text) and text not in PYTHON]


def test_there_are_some():
    assert len(SETTINGS) > 8


@pytest.mark.parametrize("text", SETTINGS)
def test_a_setting_is_one_for_the_shell_and_composes(text, tmp_path):
    words = shlex.split(text)
    seen = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {text}"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    assert seen == words
    compose(["exp_id=readme", *words])
