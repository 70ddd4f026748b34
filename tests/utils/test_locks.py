"""Claims between real processes: one holds what it took, until it lets go or dies."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmaudio.errors import MMAudioError
from mmaudio.utils.locks import Claims

HOLDER = """
import sys
from pathlib import Path
from mmaudio.utils.locks import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.take("a"), claims.take("b"), flush=True)
for line in sys.stdin:
    claims.release(line.strip())
    print("released", flush=True)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `a` and `b`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True True\n"
        yield process
        process.kill()


def test_what_another_process_holds_is_not_granted(tmp_path, holder):
    with Claims(tmp_path) as claims:
        assert (claims.take("a"), claims.take("b"), claims.take("c")) == (False, False, True)
        holder.stdin.write("a\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "released\n"
        assert claims.take("a")
        assert not claims.take("b")


def test_a_killed_process_holds_nothing(tmp_path, holder):
    with Claims(tmp_path) as claims:
        assert not claims.take("a")
        holder.kill()
        assert claims.take("a", wait=True)
        assert claims.take("b", wait=True)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MMAudioError, match="cannot be written"):
        Claims(tmp_path / "file")
