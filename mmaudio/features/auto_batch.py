"""Batch size for an encoder: fits the free GPU memory, halves on OutOfMemoryError."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmaudio.errors import MMAudioError
from mmaudio.utils.memory import free_memory

CPU_BATCH = 16
"""Batch size on a CPU, where larger ones are not faster."""
MAX_BATCH = 256
PROBE_BATCH = 4
"""Size of the first batch on a GPU, which measures the memory per row."""
MEMORY_FRACTION = 0.7
"""Share of the free memory that a batch may take; other processes need some, too."""


class AutoBatcher:
    """Batches for one encoder on one device.

    `batch_size` is that of the next batch, None before the first one on a GPU; none is larger than `max_batch`.
    """

    def __init__(self, device: torch.device, max_batch: int = MAX_BATCH) -> None:
        self.device, self.max_batch = device, max_batch
        self.batch_size: int | None = None if device.type == "cuda" else min(CPU_BATCH, max_batch)

    def run(self, encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Encode all `rows` batch by batch; the outputs on the CPU. MMAudioError if memory is too small for one row."""
        outputs: list[Tensor] = []
        start = 0
        while start < len(rows):
            batch = rows[start : start + (self.batch_size or min(PROBE_BATCH, self.max_batch))]
            output = self._try_encode(encode, batch)
            if output is None:
                self.batch_size = max(1, len(batch) // 2)
                continue
            outputs.append(output)
            start += len(batch)
        return torch.cat(outputs)

    def _try_encode(self, encode: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor | None:
        """Encode one batch; None if memory runs out. On a GPU the first batch sets `batch_size`."""
        allocated = self._reset_peak_memory()
        try:
            output = encode(batch).cpu()
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise MMAudioError(
                    f"{self.device}: out of memory with a single row in an encoder ({str(error).splitlines()[0]}). "
                    "Close what else uses it, or take --device cpu"
                ) from error
            output = None  # the failed attempt's memory is free only after this block
        if output is None and self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.batch_size is None:
            used = torch.cuda.max_memory_allocated(self.device) - allocated
            self.batch_size = min(self.max_batch, largest_batch(free_memory(self.device), used / len(batch)))
        return output

    def _reset_peak_memory(self) -> int:
        """Reset the GPU's peak memory before the first batch; the bytes that are allocated then."""
        if self.batch_size is not None:
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)


def largest_batch(free: int, per_row: float) -> int:
    """Largest batch of rows of `per_row` bytes for `free` bytes of memory: 1 to MAX_BATCH."""
    return max(1, min(MAX_BATCH, int(MEMORY_FRACTION * free / max(1.0, per_row))))
