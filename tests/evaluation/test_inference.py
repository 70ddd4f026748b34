"""Batches in which both models compute losses and latents."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from mmaudio.evaluation.inference import CPU_BATCH, run_batches
from mmaudio.utils.core_threads import CoreThreads

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 2, 7, 12, 35, 100])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_every_core_has_as_many_batches_of_nearly_one_size(count, batch_size):
    sampler, sizes = SimpleNamespace(device=CPU, autocast=nullcontext), []

    def compute(rows):
        sizes.append(len(rows))
        return torch.tensor(rows) + 0.5

    with CoreThreads(CPU) as threads:
        outputs = run_batches(sampler, threads, compute, count, batch_size)
        num_threads = threads.count
    assert outputs.tolist() == [row + 0.5 for row in range(count)], "in the order of the rows"
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= (batch_size or CPU_BATCH)
    assert len(sizes) == count or len(sizes) % num_threads == 0
