"""Checksums: the right ones, read once for a large file that stays as it is, and damage that they detect."""

import hashlib
import os
import time

import numpy as np
import pytest
import torch

from mmaudio.utils import checksums
from mmaudio.utils.checksums import FileDigests, file_digests, find_damage, move_aside


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "MIN_CACHED_BYTES", 1000)
    path = tmp_path / "w.pth"
    path.write_bytes(np.random.default_rng(0).bytes(3_000_000))
    os.utime(path, (1e9, 1e9))
    return path


def right(path):
    content = path.read_bytes()
    return FileDigests(hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest())


def test_checksums_are_cached_while_the_file_is_unchanged(file, tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    expected = right(file)
    assert file_digests(file) == expected and not notes.exists()
    assert file_digests(file, notes) == expected and len(list(notes.iterdir())) == 1
    monkeypatch.setattr(checksums, "_read", lambda path: pytest.fail("read again"))
    assert file_digests(file, notes) == expected


@pytest.mark.parametrize("change", ["time", "size", "file", "note", "fresh", "small"])
def test_a_changed_file_is_read_again(file, tmp_path, change, monkeypatch):
    notes = tmp_path / "notes"
    if change == "fresh":
        os.utime(file, (time.time() + 3600,) * 2)  # however long this test takes
    if change == "small":
        monkeypatch.setattr(checksums, "MIN_CACHED_BYTES", 1 << 30)
    file_digests(file, notes)
    status = file.stat()
    other = np.random.default_rng(1).bytes(status.st_size - (change == "size"))
    if change == "file":
        file.rename(tmp_path / "old")
    if change != "note":
        file.write_bytes(other)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + (change == "time")))
    for note in notes.glob("*") if change == "note" else ():
        note.write_text("{")
    assert file_digests(file, notes) == right(file)


def test_an_unwritable_cache_folder_is_ignored(file, tmp_path):
    (tmp_path / "notes").write_text("a file where the folder should be")
    assert file_digests(file, tmp_path / "notes") == right(file)


def test_damage_in_a_torch_file_is_detected(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.arange(10_000.0)}, path)
    assert find_damage(path) == ""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "data/0" in find_damage(path)
    assert torch.load(path, weights_only=True)["a"].shape == (10_000,)  # torch itself does not notice
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    assert find_damage(path) == ""


def test_moved_files_are_not_overwritten(tmp_path):
    target = tmp_path / "w.pth"
    for content in (b"a", b"b"):
        target.write_bytes(content)
        moved = move_aside(target, target, hashlib.md5(content).hexdigest())
        assert moved.read_bytes() == content and not target.exists()
    assert len(list(tmp_path.iterdir())) == 2
