"""The measured matrix-product speed, by a clock of the test's own."""

import itertools

import pytest
import torch

from mmaudio.utils import matmul_speed


@pytest.mark.parametrize("seconds", [0.01, 1.0])
def test_a_busy_moment_does_not_change_the_speed(monkeypatch, seconds):
    """Also where so many products as fit the time are few."""
    monkeypatch.setattr(matmul_speed, "PROBE_SIZE", {"cpu": 64})
    monkeypatch.setattr(matmul_speed, "PROBE_SECONDS", seconds)
    durations = [0.1, 0.5, 0.4, *itertools.repeat(0.1, 100)]  # busy for half of the time
    clock = itertools.accumulate(durations)
    monkeypatch.setattr(matmul_speed.time, "perf_counter", lambda: next(clock))
    speed = matmul_speed.measure_matmul_speed(torch.device("cpu"), torch.float32)
    assert speed == pytest.approx(2.0 * 64**3 / 0.1)
