"""Checksums: the right ones, read once for a large file that stays as it is, and damage that they show."""

import hashlib
import os

import numpy as np
import pytest
import torch

from mmaudio.utils import checksums
from mmaudio.utils.checksums import Digests, damage, digests, set_aside


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "LARGE", 1000)
    path = tmp_path / "w.pth"
    path.write_bytes(np.random.default_rng(0).bytes(3_000_000))
    os.utime(path, (1e9, 1e9))
    return path


def right(path):
    content = path.read_bytes()
    return Digests(hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest())


def test_they_are_noted_while_the_file_stays_as_it_is(file, tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    expected = right(file)
    assert digests(file) == expected and not notes.exists()
    assert digests(file, notes) == expected and len(list(notes.iterdir())) == 1
    monkeypatch.setattr(checksums, "_read", lambda path: pytest.fail("read again"))
    assert digests(file, notes) == expected


@pytest.mark.parametrize("change", ["time", "size", "file", "note", "fresh", "small"])
def test_they_are_read_again_where_a_note_may_be_of_something_else(file, tmp_path, change, monkeypatch):
    notes = tmp_path / "notes"
    if change == "fresh":
        os.utime(file)
    if change == "small":
        monkeypatch.setattr(checksums, "LARGE", 1 << 30)
    digests(file, notes)
    status = file.stat()
    other = np.random.default_rng(1).bytes(status.st_size - (change == "size"))
    if change == "file":
        file.rename(tmp_path / "old")
    if change != "note":
        file.write_bytes(other)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + (change == "time")))
    for note in notes.glob("*") if change == "note" else ():
        note.write_text("{")
    assert digests(file, notes) == right(file)


def test_a_folder_that_cannot_be_written_to_does_no_harm(file, tmp_path):
    (tmp_path / "notes").write_text("a file where the folder should be")
    assert digests(file, tmp_path / "notes") == right(file)


def test_damage_in_a_file_of_torch_shows(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.arange(10_000.0)}, path)
    assert damage(path) == ""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "data/0" in damage(path)
    assert torch.load(path, weights_only=True)["a"].shape == (10_000,)  # torch itself does not notice
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    assert damage(path) == ""


def test_what_is_set_aside_stays(tmp_path):
    target = tmp_path / "w.pth"
    for content in (b"a", b"b"):
        target.write_bytes(content)
        kept = set_aside(target, target, hashlib.md5(content).hexdigest())
        assert kept.read_bytes() == content and not target.exists()
    assert len(list(tmp_path.iterdir())) == 2
