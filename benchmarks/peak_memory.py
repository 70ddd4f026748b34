"""Peak memory of a function: what torch reserves on a GPU, else the resident set of the process."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Bytes that are allocated from its construction on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.baseline = self._current_bytes()

    def measure(self, function: Callable[[], object], calls: int) -> float | None:
        """Peak bytes over `calls` calls, less those at the construction; None where that cannot be measured."""
        self._current_bytes()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif RESET.exists():
            RESET.write_text("5")  # resets VmHWM
        for _ in range(calls):
            function()
        peak = self._peak_bytes()
        return None if peak is None or self.baseline is None else peak - self.baseline

    def _current_bytes(self) -> float | None:
        """Bytes in use, after all that is unused has been given back."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            return float(torch.cuda.memory_reserved(self.device))
        if STATUS.exists():
            ctypes.CDLL(None).malloc_trim(0)
        return read_status("VmRSS")

    def _peak_bytes(self) -> float | None:
        """Largest number of bytes in use since the last reset."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_reserved(self.device))
        return read_status("VmHWM")


def read_status(field: str) -> float | None:
    """Bytes of a field of Linux's process status; None on other systems."""
    if not STATUS.exists():
        return None
    rows = dict(row.split(":", 1) for row in STATUS.read_text().splitlines())
    return 1024.0 * int(rows[field].split()[0])
