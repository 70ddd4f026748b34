"""What an improvement is: paired by clip, with an interval over the videos."""

import math

import numpy as np
import pytest

from mmaudio.finetune.early_stopping import Evaluation, Progress, change

VIDEOS = ["a", "a", "b", "b", "c", "c"]


def test_the_interval_is_of_the_clips_own_differences():
    base = [1.0, 5.0, 9.0, 2.0, 7.0, 3.0]
    found = change(base, [loss - 0.1 for loss in base], VIDEOS)
    assert found.mean == pytest.approx(-0.1) and found.sure, "clips differ far more than the change does"
    assert found.interval == pytest.approx((-0.1, -0.1))


def test_clips_of_one_video_count_as_one_where_they_are_alike():
    differences = np.array([-0.3, -0.3, 0.1, 0.1, -0.1, -0.1])
    by_video = change(np.zeros(6), differences, VIDEOS)
    single = change(np.zeros(3), differences[::2], ["a", "b", "c"])
    assert by_video.interval == pytest.approx(single.interval)
    apart = change(np.zeros(6), differences, list("abcdef"))
    assert apart.interval[1] - apart.interval[0] < by_video.interval[1] - by_video.interval[0]


def test_the_interval_covers_as_often_as_it_says():
    generator, covered = np.random.default_rng(0), 0
    for _ in range(400):
        shared = generator.normal(size=8).repeat(3)
        low, high = change(np.zeros(24), shared + generator.normal(size=24), [str(i // 3) for i in range(24)]).interval
        covered += low < 0 < high
    assert 0.91 < covered / 400 < 0.985


@pytest.mark.parametrize("clips", [[2, 5, 11], [1, 1, 20], [1, 1, 1, 1, 30], [1, 1, 2, 2, 3, 3, 4, 8, 20, 40]])
def test_the_interval_covers_where_one_video_has_most_of_the_clips(clips):
    """400 repeats, clips of a video half alike: below 95 % in the extreme, where nothing of the others is known."""
    generator, video = np.random.default_rng(1), np.repeat(np.arange(len(clips)), clips)
    names, covered = [str(index) for index in video], 0
    for _ in range(400):
        losses = generator.normal(size=len(clips))[video] + generator.normal(size=len(video))
        low, high = change(np.zeros(len(video)), losses, names).interval
        covered += low < 0 < high
    assert 0.83 < covered / 400 < 0.985


def test_one_video_has_no_interval():
    found = change([1.0, 1.0], [0.5, 0.5], ["a", "a"])
    assert found.interval is None and not found.sure and str(found) == "-0.5000"


def taken(losses, min_delta=0.0, averages=None):
    progress = Progress(["a", "b"])
    averages = averages or [None] * len(losses)
    pairs = zip(losses, averages, strict=True)
    best = [
        progress.take_in(Evaluation(i, [loss] * 2, None if other is None else [other] * 2), min_delta)
        for i, (loss, other) in enumerate(pairs)
    ]
    return progress, best


def test_patience_counts_from_the_last_improvement():
    progress, best = taken([1.0, 0.95, 0.8, 0.75, 0.9], 0.1)
    assert best == [True, True, True, True, False]
    assert (progress.best, progress.best_step, progress.stale) == (0.75, 3, 2)


def test_small_steps_add_up_to_an_improvement():
    assert taken([1.0, 0.95, 0.91, 0.85], 0.1)[0].stale == 0


def test_the_running_average_counts_where_it_is_measured():
    progress, best = taken([1.0, 0.9, 0.8, 0.79], averages=[None, None, 0.6, None])
    assert best == [True, True, True, False] and progress.best == 0.6 and progress.history[2].averaged
    assert progress.stale == 0, "the adapter itself still falls"
    progress, _ = taken([1.0, 0.9, 0.95, 0.95], averages=[None, None, None, 0.7])
    assert progress.stale == 0 and progress.best_step == 3


def test_it_comes_back_from_plain_values():
    progress, _ = taken([1.0, 0.9], averages=[None, 0.8])
    assert Progress.restored(progress.plain()) == progress and Progress().best == math.inf
