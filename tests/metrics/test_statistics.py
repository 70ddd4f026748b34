"""The comparison on values known by hand, and its interval on simulated videos."""

import math

import numpy as np
import pytest
from scipy import stats

from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.statistics import Comparison, compare, overall_verdict, t_interval, verdict


def comparison(word: str) -> Comparison:
    return Comparison(1, 2, 1, (0.5, 1.5), "lower", word, 3, 3, 0.5)


def test_videos_count_once_however_many_clips_they_have():
    base = [1.0, 1.0, 1.0, 1.0, 2.0, 3.0]
    adapted = [0.0, 0.2, 0.4, 0.2, 1.0, 2.4]
    result = compare(base, adapted, ["a"] * 4 + ["b", "c"], "lower")
    differences = [-0.8, -1.0, -0.6]
    assert result.difference == pytest.approx(np.mean(differences))
    assert result.base == pytest.approx(2.0)
    assert result.adapted - result.base == pytest.approx(result.difference)
    test = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert result.interval == pytest.approx((test.low, test.high))
    assert (result.videos, result.clips, result.share_better, result.verdict) == (3, 6, 1.0, "better")


def test_the_better_direction_depends_on_the_metric():
    base, videos = [0.5, 0.6, 0.7], ["a", "b", "c"]
    adapted = [0.8, 0.91, 1.0]
    assert compare(base, adapted, videos, "higher").verdict == "better"
    assert compare(base, adapted, videos, "lower").verdict == "worse"
    assert compare(base, adapted, videos, "lower").share_better == 0.0


def test_no_verdict_below_three_videos():
    result = compare([1.0, 1.0, 1.0], [0.1, 0.1, 0.1], ["a", "a", "b"], "lower")
    assert result.verdict == "cannot tell"
    assert result.interval == pytest.approx((-0.9, -0.9))
    alone = compare([1.0], [0.1], ["a"], "lower")
    assert (alone.interval, alone.verdict) == (None, "cannot tell")


def test_identical_models_have_no_verdict():
    result = compare([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], ["a", "b", "c"], "lower")
    assert (result.interval, result.verdict, result.share_better) == ((0.0, 0.0), "cannot tell", 0.0)


def test_clips_without_a_value_are_left_out_and_counted():
    result = compare([1.0, math.nan, 3.0, 1.0], [0.5, 1.0, math.inf, 0.5], ["a", "a", "b", "c"], "lower")
    assert (result.clips, result.videos) == (2, 2)
    assert compare([math.nan], [1.0], ["a"], "lower") is None


@pytest.mark.parametrize("videos", [3, 5, 10])
def test_the_interval_has_its_nominal_coverage(videos):
    rng = np.random.default_rng(videos)
    covered = 0
    for _ in range(500):
        effect = rng.normal(-0.3, 0.2, videos)  # what the adapter does differs by video
        clips = effect[:, None] + rng.normal(0, 0.3, (videos, 6))
        low, high = t_interval(clips.mean(1))
        covered += low <= -0.3 <= high
    assert covered / 500 == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("videos", [3, 5, 10])
def test_identical_models_with_other_noise_get_cannot_tell(videos):
    """Both draw from the same distribution, every metric of them; clips of one video resemble each other."""
    rng = np.random.default_rng(100 + videos)
    names = [name for name, metric in METRICS.items() if metric.in_verdict]
    decided = 0
    for _ in range(500):
        level = rng.normal(1.0, 0.3, (videos, 1))  # hard and easy videos, for both models alike
        taste = rng.normal(0, 0.1, (2, videos, 1))
        shared = rng.normal(0, 0.2, (2, videos, 6))  # what all metrics of a sound have in common
        sources = [str(video) for video in range(videos) for _ in range(6)]
        comparisons = {}
        for name in names:
            base, adapted = (level + taste + shared + rng.normal(0, 0.1, (2, videos, 6))).reshape(2, -1)
            comparisons[name] = compare(base.tolist(), adapted.tolist(), sources, METRICS[name].better)
        decided += overall_verdict(comparisons) != "cannot tell"
    assert decided / 500 <= 0.07


def test_verdicts_at_the_interval_edges():
    assert verdict((0.0, 1.0), 5, "lower") == "cannot tell"
    assert verdict((-1.0, 0.0), 5, "lower") == "cannot tell"
    assert verdict((-1.0, -1e-9), 5, "lower") == "better"
    assert verdict(None, 5, "lower") == "cannot tell"


def test_overall_starts_from_the_loud_mel_distance():
    assert overall_verdict({"mel_l1_loud": comparison("better"), "onset_f1": comparison("cannot tell")}) == "better"
    assert overall_verdict({"mel_l1_loud": comparison("better"), "onset_f1": comparison("worse")}) == "mixed"
    assert (
        overall_verdict({"mel_l1_loud": comparison("cannot tell"), "velocity_loss": comparison("better")})
        == "cannot tell"
    )
    assert overall_verdict({"velocity_loss": comparison("better")}) == "cannot tell"
