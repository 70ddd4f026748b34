"""Batches: as large as memory allows, halved when it runs out, the same result whatever their size."""

from __future__ import annotations

import pytest
import torch
from media import random_encoders

from mmaudio.errors import MMAudioError
from mmaudio.features.auto_batch import CPU_ROWS, MOST_ROWS, Batches, fitting
from mmaudio.features.encoders import load_encoders


def test_a_batch_is_sized_to_the_free_memory():
    assert fitting(10_000, 100.0) == 70
    assert fitting(10_000, 1e9) == 1
    assert fitting(10**12, 1.0) == MOST_ROWS
    assert Batches(torch.device("cpu")).size == CPU_ROWS


def test_out_of_memory_halves_the_batch_and_changes_nothing_else(tmp_path):
    """A hook on the real encoder raises the real error for more than 3 frames."""
    encoders = load_encoders("tiny_16k", random_encoders(tmp_path), parts=("clip", "sync"))
    frames = torch.randint(256, (20, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, motion = encoders.frames(frames), encoders.motion(frames)
    tried = []

    def hook(module, inputs):
        tried.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = encoders.clip.model.visual.register_forward_pre_hook(hook)
    torch.testing.assert_close(encoders.frames(frames), whole, atol=1e-6, rtol=1e-5)
    assert tried == [16, 8, 4] + [2] * 10
    tried.clear()
    encoders.frames(frames[:3])
    assert tried == [2, 1]  # the size that fits is remembered
    handle.remove()
    torch.testing.assert_close(encoders.motion(frames), motion)


def test_no_memory_for_one_row_is_said():
    def encode(rows):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(MMAudioError, match=r"cpu: out of memory with a single row.*Tried to allocate"):
        Batches(torch.device("cpu")).run(encode, torch.zeros(4, 2))
