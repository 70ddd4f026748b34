"""FileLocks between real processes: one holds what it took, until it lets go or dies."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
from helpers import ROOT

from mmaudio.errors import MMAudioError
from mmaudio.utils import heartbeat
from mmaudio.utils.locks import FileLocks, wait_for_lock

HOLDER = """
import sys
from pathlib import Path
from mmaudio.utils.locks import FileLocks, wait_for_lock
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
        locks.wait("a", "it holds a")
        locks.wait("b", "it holds b")
        assert locks.describe_holder("a") == locks.describe_holder("b") == ""


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MMAudioError, match="cannot be written"):
        FileLocks(tmp_path / "file")
    with wait_for_lock(tmp_path / "file", "a", "nobody waits"):
        assert (tmp_path / "file").read_bytes() == b""


def start_command(*arguments):
    """A command of the project as a process."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_a_second_split_waits_for_the_first(tmp_path):
    videos, table = tmp_path / "videos", tmp_path / "data" / "clips.tsv"
    videos.mkdir()
    shutil.copy(ROOT / "mmaudio/assets/tiny_16k/general/general_00.mp4", videos)
    command = ("training/split_videos_for_finetuning.py", "--input_dir", videos, "--output_tsv", table)
    with FileLocks(table.parent) as locks:
        assert locks.acquire(table.name)
        with start_command(*command, "--val_ratio", "0", "--test_ratio", "1") as process:
            waiting = (
                f"another process splits videos into {table} (process {os.getpid()}); waiting until it has ended\n"
            )
            first = next(line for line in process.stdout if not line.startswith("loading the program"))
            assert first == waiting and not table.exists()
            locks.release(table.name)
            assert "written" in process.communicate()[0] and process.returncode == 0
    assert table.is_file()


def test_a_wait_names_the_process_that_holds_the_lock_now_and_then(tmp_path, holder, monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(heartbeat, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(heartbeat, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "BRIEF_SECONDS", 0.0)
    with FileLocks(tmp_path) as locks:
        assert locks.describe_holder("a") == f" (process {holder.pid})" and locks.describe_holder("c") == ""
        waiting = threading.Thread(target=locks.wait, args=("a", "another process writes a"))
        waiting.start()
        while " s so far\n" not in output.getvalue():
            time.sleep(0.01)
        holder.kill()
        waiting.join()
    start = f"another process writes a (process {holder.pid}); waiting"
    assert re.match(rf"{re.escape(start)} until it has ended\n{re.escape(start)}, \d+ s so far\n", output.getvalue())
