"""The interval over the videos of all folds, on simulated recipes whose folds share training videos.

A video is a point x in 16 dimensions around m, and the base model answers 0 everywhere. The adapter of a fold answers
half of its training videos' mean a. A test video's difference is the squared distance to a less that to 0, so by chance
in the training videos, which most folds have in common, all folds together are better or worse than the recipe is.
"""

import numpy as np
import pytest

from mmaudio.data.folds import AUTO_FOLDS, divide_videos
from mmaudio.metrics.statistics import UNSURE, compare, fold_variance_factor, t_interval, verdict

DIMENSIONS, LEARNED = 16, 0.5
TRIALS = 3000


def simulate(videos: int, gain: float) -> tuple[np.ndarray, float, int]:
    """(TRIALS, videos) differences, the recipe's own difference, the number of folds.

    `gain` is |m|² relative to that at which the recipe is neither better nor worse than the base: there what an adapter
    gains by m is what it loses by the chance in its training videos.
    """
    names = [f"{number}.mp4" for number in range(videos)]
    folds = divide_videos(names, min(videos, AUTO_FOLDS))
    rng = np.random.default_rng(videos)
    num_training = videos - videos / len(folds)
    square = gain * LEARNED * DIMENSIONS / (num_training * (2 - LEARNED))
    m = np.full(DIMENSIONS, np.sqrt(square / DIMENSIONS))
    x = m + rng.standard_normal((TRIALS, videos, DIMENSIONS))
    differences, expected = np.empty((TRIALS, videos)), 0.0
    for fold in folds:
        tested = [names.index(video) for video in fold]
        training = [index for index in range(videos) if index not in tested]
        adapters = LEARNED * x[:, training].mean(1)
        differences[:, tested] = (adapters**2).sum(1)[:, None] - 2 * np.einsum("tvd,td->tv", x[:, tested], adapters)
        mean = LEARNED**2 * (square + DIMENSIONS / len(training)) - 2 * LEARNED * square
        expected += mean * len(fold) / videos
    return differences, expected, len(folds)


def coverage(differences: np.ndarray, expected: float, factor: float) -> tuple[float, float]:
    """Shares of the trials whose interval holds what is expected: with the correction, and without."""
    intervals = np.array([t_interval(row, variance_factor=factor) for row in differences])
    centers, half_widths = intervals.mean(1), (intervals[:, 1] - intervals[:, 0]) / 2
    distances = abs(centers - expected)
    return float((distances <= half_widths).mean()), float((distances <= half_widths / np.sqrt(factor)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("videos", [3, 5, 8, 12])
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_the_interval_has_its_nominal_coverage_though_folds_share_training_videos(videos, gain):
    differences, expected, folds = simulate(videos, gain)
    covered, uncorrected = coverage(differences, expected, fold_variance_factor(folds))
    print(f"{videos} videos, gain {gain:g}: {100 * covered:.1f} %, uncorrected {100 * uncorrected:.1f} %")
    assert covered == pytest.approx(0.95, abs=0.03)
    assert uncorrected < 0.92, "the correction is needed"


@pytest.mark.slow
@pytest.mark.parametrize("videos", [3, 5, 8, 12])
def test_a_recipe_without_effect_gets_cannot_tell(videos):
    differences, expected, folds = simulate(videos, 1.0)
    assert expected == pytest.approx(0, abs=0.05)
    factor = fold_variance_factor(folds)
    verdicts = [verdict(t_interval(row, variance_factor=factor), videos, "lower") for row in differences]
    share = verdicts.count(UNSURE) / TRIALS
    print(f"{videos} videos: cannot tell {100 * share:.1f} %")
    assert share >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("videos", [3, 5, 8, 12])
def test_where_chance_in_training_has_no_effect_the_interval_is_wide_enough(videos):
    """Models that are the same: nothing is shared but the test, and the corrected interval is wider than it need be."""
    rng = np.random.default_rng(50 + videos)
    factor = fold_variance_factor(min(videos, AUTO_FOLDS))
    covered, _ = coverage(rng.standard_normal((TRIALS, videos)), 0.0, factor)
    print(f"{videos} videos, identical models: {100 * covered:.1f} %")
    assert covered >= 0.95


def test_the_factor_widens_the_interval_of_a_comparison():
    assert [fold_variance_factor(folds) for folds in (0, 2, 3, 5)] == pytest.approx([1, 3, 2.5, 2.25])
    values = [1.0, 1.0, 1.0], [0.8, 0.7, 0.9], ["a", "b", "c"], "lower"
    single, pooled = compare(*values), compare(*values, variance_factor=2.25)
    assert pooled.difference == single.difference
    widths = [c.interval[1] - c.interval[0] for c in (single, pooled)]
    assert widths[1] == pytest.approx(1.5 * widths[0])
