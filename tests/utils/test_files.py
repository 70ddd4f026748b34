"""Atomic writes: whole files, one writer's temporary name, and the permissions of the umask."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT
from safetensors.torch import save_file

from mmaudio.errors import MMAudioError
from mmaudio.utils.files import (
    ABANDONED_SECONDS,
    atomic_folder,
    atomic_write,
    remove_abandoned_files,
    temporary_path,
)

WRITER = """
import sys, time
from pathlib import Path
from mmaudio.utils.files import atomic_folder, atomic_write
path, number, end = Path(sys.argv[1]), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
content, rounds = bytes([number]) * 200_000, 0
while rounds < 20 or time.monotonic() < end:
    if path.suffix:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            for start in range(0, len(content), 20_000):
                file.write(content[start : start + 20_000])
                file.flush()
        read = path.read_bytes()
        assert len(read) == len(content) and len(set(read)) == 1, (len(read), set(read))
    else:
        with atomic_folder(path) as temporary:
            for name in ("a", "b"):
                (temporary / name).write_bytes(content[:1])
    rounds += 1
print(rounds)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["file.bin", "folder"])
def test_eight_processes_write_and_read_the_same_path(tmp_path, name):
    command = [sys.executable, "-c", WRITER, str(tmp_path / name)]
    processes = [
        subprocess.Popen(
            [*command, str(number), "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for number in range(8)
    ]
    for process in processes:
        printed, errors = process.communicate()
        assert process.returncode == 0 and int(printed) >= 20, errors
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing is left"
    if name == "folder":
        assert len({path.read_bytes() for path in (tmp_path / name).iterdir()}) == 1, "both files are of one writer"


def test_a_folder_replaces_another(tmp_path):
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new"]


def test_a_failed_write_leaves_the_old_content(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(MMAudioError, match=r"file: cannot be written \(No space left"), atomic_write(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(MMAudioError, match="cannot be written"), atomic_folder(tmp_path / "folder"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_full_disk_is_told_whichever_library_writes(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for writer, name in ((atomic_write, "file"), (atomic_folder, "folder")):
            refusal = rf"{name}: cannot be written \(File too large\)"
            with pytest.raises(MMAudioError, match=refusal), writer(tmp_path / name) as temporary:
                save_file({"a": torch.zeros(1000)}, temporary / "a" if name == "folder" else temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_the_longest_name_can_be_written(tmp_path):
    for name in ("x" * 255, "\U0001d11e" * 63):
        with atomic_write(tmp_path / name) as temporary:
            temporary.write_text(name)
        assert (tmp_path / name).read_text() == name


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_permissions_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(2)}, temporary)
        with atomic_write(tmp_path / "private") as temporary:
            temporary.unlink()
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_only_abandoned_files_and_folders_are_removed(tmp_path):
    old, new, folder = (temporary_path(tmp_path / name) for name in ("old", "new", "folder"))
    other, download = tmp_path / "c.12345678.part", tmp_path / ".weights.pth.part"
    folder.mkdir()
    for path in (old, new, folder / "file", other, download):
        path.write_bytes(b"")
    for path in (old, folder, other, download):
        os.utime(path, (time.time() - ABANDONED_SECONDS - 10,) * 2)
    remove_abandoned_files(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, other, download])


def test_what_a_killed_process_leaves_goes_at_once(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from mmaudio.utils.files import atomic_folder, atomic_write
with atomic_write(Path(sys.argv[1]) / "file"), atomic_folder(Path(sys.argv[1]) / "folder"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_write(tmp_path / "other") as written:
        remove_abandoned_files(tmp_path)
        assert list(tmp_path.iterdir()) == [written], "that of a process that runs stays"
