"""Matrix-product speed of a device, the reference for model FLOPs utilisation and the plan's time estimates."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import torch
from torch import Tensor

PROBE_SIZE = {"cpu": 2048, "cuda": 8192}
"""Width of the square matrices, by device type."""
PROBE_SECONDS = 0.5
MIN_PRODUCTS = 5
"""So many at least, that the median is not that of one busy moment."""


def measure_matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the median of several."""
    size = PROBE_SIZE[device.type]
    a: Tensor = torch.randn(size, size, device=device).to(dtype)
    a @ a
    _synchronize(device)
    times = [time.perf_counter()]
    while times[-1] - times[0] < PROBE_SECONDS or len(times) <= MIN_PRODUCTS:
        a @ a
        _synchronize(device)
        times.append(time.perf_counter())
    durations = [end - start for start, end in pairwise(times)]
    return 2.0 * size**3 / statistics.median(durations)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
