"""The measured matrix-product speed, by a clock of the test's own."""

import itertools

import pytest
import torch

from mmaudio.utils import matmul_speed


def speed_of(monkeypatch, durations):
    """The speed that is measured for 64 x 64 where the products take so long, one after the other."""
    monkeypatch.setattr(matmul_speed, "PROBE_SIZE", {"cpu": 64})
    clock = itertools.accumulate(itertools.chain.from_iterable((1.0, duration) for duration in durations))
    monkeypatch.setattr(matmul_speed.time, "perf_counter", lambda: next(clock))
    return matmul_speed.measure_matmul_speed(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("seconds", [0.01, 1.0])
def test_a_busy_moment_does_not_change_the_speed(monkeypatch, seconds):
    """Also where so many products as fit the time are few."""
    monkeypatch.setattr(matmul_speed, "PROBE_SECONDS", seconds)
    small, first, busy = [9.0, 0.1, 0.2, 0.001, 0.3], 0.3, (0.5, 0.4)
    durations = [*small, first, *busy, *itertools.repeat(0.1, 100)]
    assert speed_of(monkeypatch, durations) == pytest.approx(2.0 * 64**3 / 0.1)


def test_a_type_that_is_emulated_is_measured_by_small_products(monkeypatch):
    assert speed_of(monkeypatch, itertools.repeat(0.1, 100)) == pytest.approx(2.0 * 8**3 / 0.1)
