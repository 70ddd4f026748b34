"""Automatic batch sizes: they fit the free memory, halve when it runs out, and change no result."""

from __future__ import annotations

import pytest
import torch
from video_files import random_encoders

from mmaudio.errors import MMAudioError
from mmaudio.features.auto_batch import CPU_BATCH, MAX_BATCH, AutoBatcher, largest_batch
from mmaudio.features.encoders import load_encoders


def test_the_largest_batch_fits_the_free_memory():
    assert largest_batch(10_000, 100.0) == 70
    assert largest_batch(10_000, 1e9) == 1
    assert largest_batch(10**12, 1.0) == MAX_BATCH
    assert AutoBatcher(torch.device("cpu")).batch_size == CPU_BATCH


@pytest.mark.slow
def test_out_of_memory_halves_the_batch_and_changes_nothing_else(tmp_path):
    """A hook on the real encoder raises the real error for more than 3 frames."""
    encoders = load_encoders("tiny_16k", random_encoders(tmp_path), names=("clip", "sync"))
    frames = torch.randint(256, (20, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip_features, sync_features = encoders.encode_clip_frames(frames), encoders.encode_sync_frames(frames)
    batch_sizes = []

    def hook(module, inputs):
        batch_sizes.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = encoders.clip.model.visual.register_forward_pre_hook(hook)
    torch.testing.assert_close(encoders.encode_clip_frames(frames), clip_features, atol=1e-6, rtol=1e-5)
    assert batch_sizes == [16, 8, 4] + [2] * 10
    batch_sizes.clear()
    encoders.encode_clip_frames(frames[:3])
    assert batch_sizes == [2, 1]  # the size that fits is remembered
    handle.remove()
    torch.testing.assert_close(encoders.encode_sync_frames(frames), sync_features)


def test_out_of_memory_for_one_row_is_an_error():
    def encode(rows):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(MMAudioError, match=r"cpu: out of memory with a single row.*Tried to allocate"):
        AutoBatcher(torch.device("cpu")).run(encode, torch.zeros(4, 2))
