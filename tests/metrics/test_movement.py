"""How far sounds move relative to another seed: values known by hand, and the interval's coverage in simulations."""

import math

import numpy as np
import pytest

from mmaudio.metrics.movement import compare_distances
from mmaudio.metrics.statistics import t_interval


def test_the_share_is_of_the_means_and_equal_models_do_not_move():
    movement = compare_distances([0.2, 0.4, 0.3], [0.5, 0.7, 0.6])
    assert movement.share == pytest.approx(0.5) and movement.prompts == 3
    assert 0 <= movement.interval[0] < 0.5 < movement.interval[1]
    for end in movement.interval:  # there the interval of the differences has its end at zero
        low, high = t_interval(np.array([0.2, 0.4, 0.3]) - end * np.array([0.5, 0.7, 0.6]))
        assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)
    still = compare_distances([0.0] * 4, [0.5, 0.7, 0.6, 0.4])
    assert (still.share, still.interval) == (0.0, (0.0, 0.0))


def test_prompts_without_a_value_are_left_out_and_seeds_that_change_nothing_have_no_share():
    movement = compare_distances([0.2, math.nan, 0.4], [0.4, 0.1, 0.8])
    assert (movement.prompts, movement.share) == (2, pytest.approx(0.5))
    assert compare_distances([0.2], [0.4]).interval is None, "of one prompt"
    assert compare_distances([0.2, 0.3, 0.1], [0.01, 5.0, 0.1]).interval is None, "prompts that differ by so much"
    assert compare_distances([math.nan], [1.0]) is None
    fixed = compare_distances([0.1, 0.2, 0.3], [0.0, 0.0, 0.0])
    assert (fixed.share, fixed.interval) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [4, 10, 22])
def test_the_interval_over_prompts_has_its_nominal_coverage(prompts):
    """1000 repeats; distances as the demo's: both follow the prompt, and the share varies by a third of itself."""
    rng, intervals = np.random.default_rng(prompts), []
    for _ in range(1000):
        level = rng.gamma(10, 0.055, prompts)  # how much sounds of a prompt vary
        seed_distances = level * rng.gamma(30, 1 / 30, prompts)
        distances = 0.83 * level * rng.gamma(9, 1 / 9, prompts)
        intervals.append(compare_distances(distances.tolist(), seed_distances.tolist()).interval)
    limited = [interval for interval in intervals if interval is not None]
    assert len(limited) >= 950
    assert sum(low <= 0.83 <= high for low, high in limited) / len(limited) == pytest.approx(0.95, abs=0.03)
