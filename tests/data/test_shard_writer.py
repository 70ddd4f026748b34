"""Safetensors files written row by row: the library reads the same values, and a file that exists is complete."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmaudio.data.shard_writer import ShardWriter
from mmaudio.errors import DataError, MMAudioError

SHAPES = {"a": (3, 2, 5), "b": (2, 7), "none": (0, 4)}


def rows():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def fill(writer, tensors):
    for name, tensor in reversed(tensors.items()):
        for row in reversed(range(len(tensor))):
            writer.write_row(name, row, tensor[row])


def test_the_library_reads_the_written_rows(tmp_path):
    path, tensors = tmp_path / "new" / "a.safetensors", rows()
    with ShardWriter(path, {"about": 'quotes " and ümlauts'}, SHAPES) as writer:
        fill(writer, tensors)
        assert not path.exists()
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with safe_open(path, "pt") as file:
        assert file.metadata()["about"] == 'quotes " and ümlauts'
    assert [entry.name for entry in path.parent.iterdir()] == ["a.safetensors"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_error_leaves_what_was_there_before(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), ShardWriter(path, {}, SHAPES) as writer:
        writer.write_row("a", 0, rows()["a"][0])
        raise KeyboardInterrupt
    with pytest.raises(DataError, match="its b come out as values that are not finite"):  # noqa: SIM117
        with ShardWriter(path, {}, SHAPES) as writer:
            writer.write_row("b", 1, torch.full((7,), torch.nan))
    with pytest.raises(AssertionError, match="4 rows"), ShardWriter(path, {}, SHAPES) as writer:
        writer.write_row("a", 0, rows()["a"][0])
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.slow
def test_a_full_disk_is_an_error_in_one_line(tmp_path):
    """A limit on the size of files, which a full disk resembles: one line, and nothing is left."""
    script = f"""
import pathlib, resource, signal, torch
from mmaudio.data.shard_writer import ShardWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with ShardWriter(pathlib.Path({str(tmp_path / "a.safetensors")!r}), {{}}, {{"a": (10, 10_000)}}) as writer:
    writer.write_row("a", 0, torch.zeros(10_000))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "MMAudioError" in result.stderr
    assert "cannot be written" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """200 MB go through in rows of 2 MB."""
    row = torch.zeros(500_000)
    with ShardWriter(tmp_path / "a.safetensors", {}, {"a": (100, 500_000)}) as writer:
        writer.write_row("a", 0, row)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(1, 100):
            writer.write_row("a", number, row)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MMAudioError, match="cannot be written"), ShardWriter(tmp_path / "file" / "a", {}, SHAPES):
        pass
