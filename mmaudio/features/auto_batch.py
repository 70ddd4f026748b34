"""How many rows go through an encoder at once: as many as the free memory takes, and half as many after it ran out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmaudio.errors import MMAudioError
from mmaudio.utils.memory import free_memory

CPU_ROWS = 16
"""Rows at once on a CPU, where more are not faster."""
MOST_ROWS = 256
PROBE_ROWS = 4
"""Rows that tell, on a GPU, how much memory each takes."""
USED_SHARE = 0.7
"""Share of the free memory that a batch may take: what runs beside it wants some, too."""


class Batches:
    """Batches for one encoder on one device; `size` is the rows of the next one, None before the first on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.size: int | None = None if device.type == "cuda" else CPU_ROWS

    def run(self, encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """`encode` of all `rows`, batch by batch, on the CPU. MMAudioError where memory runs out even for one row."""
        made: list[Tensor] = []
        first = 0
        while first < len(rows):
            part = rows[first : first + (self.size or PROBE_ROWS)]
            done = self._attempt(encode, part)
            if done is None:
                self.size = max(1, len(part) // 2)
                continue
            made.append(done)
            first += len(part)
        return torch.cat(made)

    def _attempt(self, encode: Callable[[Tensor], Tensor], part: Tensor) -> Tensor | None:
        """`encode(part)` on the CPU, None where memory ran out; on a GPU the first one sets the size."""
        before = self._allocated()
        try:
            done = encode(part).cpu()
        except torch.OutOfMemoryError as error:
            if len(part) == 1:
                raise MMAudioError(
                    f"{self.device}: out of memory with a single row in an encoder ({str(error).splitlines()[0]}). "
                    "Close what else uses it, or take --device cpu"
                ) from error
            done = None  # what the failed attempt holds is free only after this block
        if done is None and self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.size is None:
            taken = torch.cuda.max_memory_allocated(self.device) - before
            self.size = fitting(free_memory(self.device), taken / len(part))
        return done

    def _allocated(self) -> int:
        if self.size is not None:
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)


def fitting(free: int, per_row: float) -> int:
    """How many rows of `per_row` bytes a batch has where `free` bytes are left: 1 to MOST_ROWS."""
    return max(1, min(MOST_ROWS, int(USED_SHARE * free / max(1.0, per_row))))
