"""The verdict in words."""

import pytest

from mmaudio.data.clips import Clip
from mmaudio.evaluation.results import ClipMeasurement, ClipResult, Results
from mmaudio.metrics.registry import PRIMARY
from mmaudio.report.verdict import UNDECIDED, terminal_lines, verdict_section


@pytest.mark.parametrize("loud", [0, 2])
def test_no_difference_is_claimed_where_the_deciding_metric_is_rarely_known(loud):
    clips = []
    for n in range(5):
        values = {"mel_l1": 1.0 - n / 10} | ({PRIMARY: 1.0 - n / 10} if n < loud else {})
        clip = Clip(f"{n}", f"{n}.mp4", 0.0, 8.0, "", "test", 0.0, 0.0, 0.0)
        clips.append(ClipResult(clip, {name: ClipMeasurement(values) for name in ("original", "base", "adapted")}))
    results = Results(clips)
    section = verdict_section(results, None, "none is here", validation_is_test=False)
    assert section["headline"] == UNDECIDED == terminal_lines(results.comparisons())[0] and section["style"] == "unsure"
    assert terminal_lines({}) == ["Too few held-out videos for a verdict: at least 3 are needed"]
    assert f"known for {loud} held-out videos" in section["sentences"][0]
