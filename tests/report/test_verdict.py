"""The words and numbers of a report."""

import math

import pytest

from mmaudio.data.clips import Clip
from mmaudio.evaluation.inference import Sound
from mmaudio.evaluation.results import ClipResult, Results
from mmaudio.metrics.registry import PRIMARY
from mmaudio.metrics.statistics import Comparison
from mmaudio.report.verdict import UNDECIDED, number, percent, rows, signed, terminal, verdict


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (-1e-17, "0.000"),
        (0.00042, "0.000420"),
        (-0.0123, "−0.0123"),
        (0.5, "0.500"),
        (9.8765, "9.877"),
        (123.45, "123.5"),
        (12345.6, "12,346"),
        (math.nan, "–"),
    ],
)
def test_numbers_keep_their_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("change", "text"), [(-0.3, "−30"), (0.0996, "+10"), (-0.002, "−0.2"), (-0.0102, "−1.0"), (-1e-9, "0"), (0.0, "0")]
)
def test_a_share_has_no_sign_that_says_nothing(change, text):
    assert percent(change, 1.0) == f"{text}\u202f%" and percent(change, 0.0) == ""


@pytest.mark.parametrize("loud", [0, 2])
def test_no_difference_is_claimed_where_the_metric_that_decides_is_hardly_known(loud):
    clips = []
    for n in range(5):
        values = {"mel_l1": 1.0 - n / 10} | ({PRIMARY: 1.0 - n / 10} if n < loud else {})
        clip = Clip(f"{n}", f"{n}.mp4", 0.0, 8.0, "", "test", 0.0, 0.0, 0.0)
        clips.append(ClipResult(clip, {name: Sound(values) for name in ("original", "base", "adapted")}))
    found = Results(clips)
    told = verdict(found, None, "none is here", twice=False)
    assert told["headline"] == UNDECIDED == terminal(found.comparisons())[0] and told["style"] == "unsure"
    assert terminal({}) == ["Too few held-out videos for a verdict: at least 3 are needed"]
    assert f"known for {loud} held-out videos" in told["sentences"][0]


def test_a_small_change_that_is_clear_is_not_shown_as_none():
    found = Comparison(0.0123, 0.0119, -0.0004, (-0.0007, -0.0001), "lower", "better", 9, 9, 0.9)
    row = rows({"near_silent": found})[0]
    assert (row["difference"], row["interval"]) == ("−0.000400", "−0.000700 to −0.000100")
    assert signed(1e-17) == "0.000" and signed(0.0004) == "+0.000400"
