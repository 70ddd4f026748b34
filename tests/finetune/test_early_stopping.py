"""Validation history: changes paired by clip, their intervals over the videos, patience."""

import math

import numpy as np
import pytest

from mmaudio.finetune.early_stopping import Evaluation, ValidationHistory, compute_paired_change

VIDEOS = ["a", "a", "b", "b", "c", "c"]


def test_the_interval_is_of_paired_differences():
    base = [1.0, 5.0, 9.0, 2.0, 7.0, 3.0]
    change = compute_paired_change(base, [loss - 0.1 for loss in base], VIDEOS)
    assert change.mean == pytest.approx(-0.1) and change.is_significant, "clips differ far more than the change does"
    assert change.interval == pytest.approx((-0.1, -0.1))


def test_correlated_clips_of_a_video_count_as_one():
    differences = np.array([-0.3, -0.3, 0.1, 0.1, -0.1, -0.1])
    by_video = compute_paired_change(np.zeros(6), differences, VIDEOS)
    single = compute_paired_change(np.zeros(3), differences[::2], ["a", "b", "c"])
    assert by_video.interval == pytest.approx(single.interval)
    apart = compute_paired_change(np.zeros(6), differences, list("abcdef"))
    assert apart.interval[1] - apart.interval[0] < by_video.interval[1] - by_video.interval[0]


def test_the_interval_has_its_nominal_coverage():
    generator, covered = np.random.default_rng(0), 0
    for _ in range(400):
        shared = generator.normal(size=8).repeat(3)
        low, high = compute_paired_change(
            np.zeros(24), shared + generator.normal(size=24), [str(i // 3) for i in range(24)]
        ).interval
        covered += low < 0 < high
    assert 0.91 < covered / 400 < 0.985


@pytest.mark.parametrize("clips", [[2, 5, 11], [1, 1, 20], [1, 1, 1, 1, 30], [1, 1, 2, 2, 3, 3, 4, 8, 20, 40]])
def test_the_interval_covers_with_one_dominant_video(clips):
    """400 repeats, clips of a video half alike: below 95 % in the extreme, where nothing of the others is known."""
    generator, video = np.random.default_rng(1), np.repeat(np.arange(len(clips)), clips)
    names, covered = [str(index) for index in video], 0
    for _ in range(400):
        losses = generator.normal(size=len(clips))[video] + generator.normal(size=len(video))
        low, high = compute_paired_change(np.zeros(len(video)), losses, names).interval
        covered += low < 0 < high
    assert 0.83 < covered / 400 < 0.985


def test_one_video_has_no_interval():
    change = compute_paired_change([1.0, 1.0], [0.5, 0.5], ["a", "a"])
    assert change.interval is None and not change.is_significant and str(change) == "-0.5000"


def build_history(losses, min_delta=0.0, ema_losses=None):
    history = ValidationHistory(["a", "b"])
    ema_losses = ema_losses or [None] * len(losses)
    pairs = zip(losses, ema_losses, strict=True)
    best = [
        history.add(Evaluation(i, [loss] * 2, None if ema is None else [ema] * 2), min_delta)
        for i, (loss, ema) in enumerate(pairs)
    ]
    return history, best


def test_patience_counts_from_the_last_improvement():
    history, best = build_history([1.0, 0.95, 0.8, 0.75, 0.9], 0.1)
    assert best == [True, True, True, True, False]
    assert (history.best_loss, history.best_step, history.num_bad_evaluations) == (0.75, 3, 2)


def test_small_steps_add_up_to_an_improvement():
    assert build_history([1.0, 0.95, 0.91, 0.85], 0.1)[0].num_bad_evaluations == 0


def test_the_ema_counts_where_it_is_measured():
    history, best = build_history([1.0, 0.9, 0.8, 0.79], ema_losses=[None, None, 0.6, None])
    assert best == [True, True, True, False] and history.best_loss == 0.6 and history.evaluations[2].ema_is_better
    assert history.num_bad_evaluations == 0, "the adapter itself still falls"
    history, _ = build_history([1.0, 0.9, 0.95, 0.95], ema_losses=[None, None, None, 0.7])
    assert history.num_bad_evaluations == 0 and history.best_step == 3


def test_state_dict_round_trip():
    history, _ = build_history([1.0, 0.9], ema_losses=[None, 0.8])
    assert (
        ValidationHistory.from_state_dict(history.state_dict()) == history and ValidationHistory().best_loss == math.inf
    )
