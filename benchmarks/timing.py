"""Timing of contestants in rounds, and the name of the device they run on."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from mmaudio.utils.progress import progress

CPU = torch.device("cpu")
CPU_INFO = Path("/proc/cpuinfo")
T = TypeVar("T")


@dataclass
class Timing(Generic[T]):
    """Seconds of each call of a function, and the result of the last one."""

    seconds: list[float]
    result: T

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


def time_call(function: Callable[[], T], device: torch.device = CPU) -> tuple[float, T]:
    """Seconds of one call, and its result; on a GPU until its kernels are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


def time_rounds(contestants: Mapping[str, Callable[[], T]], rounds: int, device: torch.device) -> dict[str, Timing[T]]:
    """Timings by name: each round calls every contestant once, in turn, so that all meet the same disturbances."""
    timings: dict[str, Timing[T]] = {}
    for _ in progress(range(rounds), rounds, "rounds"):
        for name, function in contestants.items():
            seconds, result = time_call(function, device)
            earlier = timings[name].seconds if name in timings else []
            timings[name] = Timing([*earlier, seconds], result)
    return timings


def median_seconds(function: Callable[[], object], rounds: int, device: torch.device = CPU) -> float:
    """Median seconds of `rounds` calls."""
    return statistics.median(time_call(function, device)[0] for _ in range(rounds))


def describe_device(device: torch.device) -> str:
    """The model name of the GPU, or of the CPU with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
