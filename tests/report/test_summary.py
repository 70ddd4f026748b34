"""The summary at the end: verdict, what was forgotten, and the strength that the command for audio carries."""

import json
from dataclasses import asdict

import pytest

from mmaudio.metrics.registry import PRIMARY
from mmaudio.metrics.statistics import compare
from mmaudio.report.summary import Summary, read_summary

VIDEOS = ("a", "b", "c")
BETTER, WORSE = (
    {PRIMARY: compare((1.0, 1.1, 0.9), [mean + offset for offset in (0.0, 0.11, -0.1)], VIDEOS, "lower")}
    for mean in (0.5, 1.5)
)


def test_it_says_verdict_forgetting_and_strength():
    lines = Summary(BETTER, WORSE, strength=0.75, recommendation="About as close.").lines()
    assert lines["Verdict"].startswith("Better: ") and lines["Strength"] == "0.75. About as close."
    assert lines["Forgot"].startswith("Worse on other audio. On other audio") and "50" in lines["Forgot"]
    lines = Summary(BETTER, {}, "no videos are at hand").lines()
    assert lines["Forgot"].endswith("not measured: no videos are at hand.") and "Strength" not in lines
    assert Summary(BETTER, {}, recommendation="At no strength.").lines()["Strength"] == "none. At no strength."


def test_what_moved_on_prompts_stands_with_what_was_forgotten(tmp_path):
    sentence = "From text alone, the sounds of 9 generic prompts moved 40 % as far as another seed."
    with_videos, without = (
        Summary(BETTER, videos, reason, prompts=sentence).lines()["Forgot"]
        for videos, reason in ((WORSE, ""), ({}, "no videos are at hand"))
    )
    assert with_videos.startswith("Worse on other audio. ") and with_videos.endswith(f" {sentence}")
    reason = "Whether other audio is worse was not measured: no videos are at hand."
    assert without == f"Measured on prompts alone. {sentence} {reason}"
    contents = {
        "metrics": {},
        "forgetting": {},
        "recommended_strength": None,
        "generic_prompts": {"sentence": sentence},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(contents))
    assert read_summary(tmp_path / "metrics.json").prompts == sentence


def test_too_few_videos_are_no_verdict():
    few = {PRIMARY: compare((1.0, 1.1), (0.5, 0.6), ("a", "b"), "lower")}
    assert Summary(few, {}).lines()["Verdict"] == "Too few held-out videos for a verdict: at least 3 are needed"


@pytest.mark.parametrize(("strength", "flags"), [(0.75, ["--strength", "0.75"]), (1.0, []), (None, [])])
def test_it_is_read_from_the_results_with_the_flags_of_generation(tmp_path, strength, flags):
    path = tmp_path / "metrics.json"
    sets = {key: {PRIMARY: asdict(metrics[PRIMARY])} for key, metrics in (("metrics", BETTER), ("forgetting", WORSE))}
    path.write_text(json.dumps({**sets, "recommended_strength": strength, "recommendation": "Close."}))
    summary = read_summary(path)
    assert summary == Summary(BETTER, WORSE, "", strength, "Close.") and summary.strength_flags == flags


def test_results_that_cannot_be_read_have_no_summary(tmp_path):
    for content in ("", "[]", "{}", '{"metrics": {"a": 1}}'):
        (tmp_path / "metrics.json").write_text(content)
        assert read_summary(tmp_path / "metrics.json") is None
    assert read_summary(tmp_path / "none.json") is None
