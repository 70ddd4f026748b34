"""Which clips a report plays."""

import pytest

from mmaudio.data.clips import Clip
from mmaudio.evaluation.report_clips import choose_report_clips
from mmaudio.evaluation.results import ClipMeasurement, ClipResult
from mmaudio.metrics.metric_inputs import ADAPTED, BASE
from mmaudio.metrics.registry import PRIMARY


def clip_result(number, video, adapted):
    measurements = {BASE: ClipMeasurement({PRIMARY: 2.0}), ADAPTED: ClipMeasurement({PRIMARY: adapted})}
    return ClipResult(Clip(str(number), video, 0.0, 8.0, "", "test", -1.0, -20.0, 0.0), measurements)


def results(per_video=20, videos=5):
    """Clips that are better the later they come in a video, and the later the video is; the first has no value."""
    numbers = [(f"{video}.mp4", clip) for video in range(videos) for clip in range(per_video)]
    clips = [clip_result(n, video, 3 - n / 100) for n, (video, _) in enumerate(numbers)]
    clips[0].measurements[ADAPTED].values[PRIMARY] = float("nan")
    return clips


def test_worst_best_and_some_of_every_video():
    chosen = choose_report_clips(results(), 24)
    assert len(chosen) == 24 and chosen == sorted(set(chosen))
    assert {1, 2, 3, 97, 98, 99} <= set(chosen), "the three worst and the three best"
    counts = [sum(20 * video <= row < 20 * (video + 1) for row in chosen) for video in range(5)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 24, 100])
def test_no_more_than_asked_for_and_all_where_they_are_few(limit):
    assert len(choose_report_clips(results(3, 2), limit)) == min(limit, 6)
    assert choose_report_clips([], limit) == []
