"""Matrix-product speed of a device, the reference for model FLOPs utilisation and the plan's time estimates."""

from __future__ import annotations

import time

import torch
from torch import Tensor

PROBE_SIZE = {"cpu": 2048, "cuda": 8192}
"""Width of the square matrices, by device type."""
PROBE_SECONDS = 0.5


def measure_matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, measured for half a second."""
    size = PROBE_SIZE[device.type]
    a: Tensor = torch.randn(size, size, device=device).to(dtype)
    a @ a
    _synchronize(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < PROBE_SECONDS:
        a @ a
        _synchronize(device)
        count += 1
    return 2.0 * size**3 * count / (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
