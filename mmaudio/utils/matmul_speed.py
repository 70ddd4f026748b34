"""Matrix-product speed of a device, the reference for model FLOPs utilisation and the plan's time estimates."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

PROBE_SIZE = {"cpu": 2048, "cuda": 8192}
"""Width of the square matrices, by device type."""
SMALL_SHARE = 8
"""Width of these matrices over that of smaller ones, which are multiplied where the large ones would take too long."""
MAX_PRODUCT_SECONDS = 4.0
"""Estimated time of one large product above which that is so: a type that is emulated, bfloat16 for instance."""
PROBE_SECONDS = 0.5
MIN_PRODUCTS = 5
"""So many at least, that the median is not that of one busy moment."""


def measure_matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the median of several."""
    size = PROBE_SIZE[device.type]
    small = _random_matrix(size // SMALL_SHARE, device, dtype)
    fastest = min(_time_product(small, device) for _ in range(MIN_PRODUCTS))  # others come in busy moments
    if SMALL_SHARE**3 * fastest > MAX_PRODUCT_SECONDS:
        a = small
    else:
        a = _random_matrix(size, device, dtype)
        _time_product(a, device)
    durations: list[float] = []
    while sum(durations) < PROBE_SECONDS or len(durations) < MIN_PRODUCTS:
        durations.append(_time_product(a, device))
    return 2.0 * len(a) ** 3 / statistics.median(durations)


def _random_matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, size, device=device).to(dtype)


def _time_product(a: Tensor, device: torch.device) -> float:
    """Seconds of one product of `a` with itself."""
    _synchronize(device)
    start = time.perf_counter()
    a @ a
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
