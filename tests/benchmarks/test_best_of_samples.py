"""The benchmark of ranked takes: its figures are those of the takes, and it runs on a drawn video."""

import numpy as np
import pytest

from benchmarks.best_of_samples import Outcome, bootstrap_interval, main, summary_lines, video_gains

OUTCOMES = [
    Outcome("a.mp4", np.array([0.2, 0.8, 0.5]), {"motion": np.array([0.1, 0.9, 0.2])}),
    Outcome("a.mp4", np.array([0.5, 0.2, 0.2]), {"motion": np.array([0.3, 0.1, 0.0])}),
    Outcome("b.mp4", np.array([0.9, 0.3, 0.3]), {"motion": np.array([0.0, 0.0, 0.5])}),
]


def test_the_gain_is_that_of_the_take_with_the_highest_score_by_video():
    assert video_gains(OUTCOMES, "motion") == pytest.approx([(0.3 + 0.2) / 2, -0.2])
    lines = summary_lines(OUTCOMES)
    assert lines[0] == "3 clips of 2 videos, 3 takes each"
    assert lines[1] == "onset F1: mean take 0.433, best by the original itself 0.733"
    assert lines[2].startswith("best by motion 0.533; gain by video +0.025, 95 % bootstrap interval -0.200 to +0.250")


def test_the_interval_covers_the_mean_and_narrows_with_more_videos():
    values = np.random.default_rng(1).normal(0.1, 0.2, 400)
    few, many = (bootstrap_interval(values[:count]) for count in (20, 400))
    assert many[0] < values.mean() < many[1] and many[1] - many[0] < few[1] - few[0]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


@pytest.mark.slow
def test_it_measures_a_drawn_video(tmp_path, capsys):
    assert main(["--draw", "1", "--samples", "2", "--steps", "1", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (tmp_path / "demo_1000_00.mp4").is_file() and lines[-4] == "1 clips of 1 videos, 2 takes each"
    assert [line.split()[2] for line in lines[-2:]] == ["consensus", "motion"]
