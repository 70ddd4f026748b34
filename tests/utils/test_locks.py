"""FileLocks between real processes: one holds what it took, until it lets go or dies."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmaudio.errors import MMAudioError
from mmaudio.utils.locks import FileLocks

HOLDER = """
import sys
from pathlib import Path
from mmaudio.utils.locks import FileLocks
locks = FileLocks(Path(sys.argv[1]))
print(locks.acquire("a"), locks.acquire("b"), flush=True)
for line in sys.stdin:
    locks.release(line.strip())
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


def test_a_lock_held_by_another_process_is_refused(tmp_path, holder):
    with FileLocks(tmp_path) as locks:
        assert (locks.acquire("a"), locks.acquire("b"), locks.acquire("c")) == (False, False, True)
        holder.stdin.write("a\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "released\n"
        assert locks.acquire("a")
        assert not locks.acquire("b")


def test_a_killed_process_releases_its_locks(tmp_path, holder):
    with FileLocks(tmp_path) as locks:
        assert not locks.acquire("a")
        holder.kill()
        assert locks.acquire("a", wait=True)
        assert locks.acquire("b", wait=True)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MMAudioError, match="cannot be written"):
        FileLocks(tmp_path / "file")
