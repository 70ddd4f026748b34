"""Which strength is recommended: the smallest of those that are about as good as the best."""

import pytest

from mmaudio.data.clips import Clip
from mmaudio.errors import ConfigError
from mmaudio.evaluation.results import ClipMeasurement, ClipResult, Results
from mmaudio.evaluation.strength_sweep import compare_strengths, strengths_to_try
from mmaudio.metrics.registry import PRIMARY

SPREAD = (-0.02, 0.0, 0.02, 0.01, -0.01)
"""How the videos differ from their mean."""


def make_results(means, spread=SPREAD):
    """A clip of each of five videos whose primary metric is `means` by strength; the videos move together."""
    return compare_values(
        {strength: [mean + offset * strength for offset in spread] for strength, mean in means.items()}
    )


def compare_values(values):
    """A clip of each video whose primary metric is `values` by strength."""
    clips = []
    for number in range(len(values[0.0])):
        clip = Clip(f"{number}", f"{number}.mp4", 0.0, 8.0, "", "test", 0.0, 0.0, 0.0)
        sounds = {strength: ClipMeasurement({PRIMARY: by_video[number]}) for strength, by_video in values.items()}
        strengths = {strength: sound for strength, sound in sounds.items() if strength not in (0.0, 1.0)}
        clips.append(ClipResult(clip, {"base": sounds[0.0], "adapted": sounds[1.0]}, strengths=strengths))
    results = Results(clips)
    compare_strengths(results)
    return results


def test_the_best_strength_is_recommended_where_less_is_clearly_worse():
    outcome = make_results({0.0: 1.0, 0.5: 0.8, 0.75: 0.7, 1.0: 0.6, 1.25: 0.9})
    assert outcome.recommended == 1.0 and "less of it loses more" in outcome.recommendation
    assert list(outcome.strengths) == [0.0, 0.5, 0.75, 1.0, 1.25]
    assert outcome.strengths[0.5][PRIMARY].difference == pytest.approx(-0.2)
    assert outcome.strengths[0.0][PRIMARY].difference == 0


def test_the_smallest_strength_that_is_about_as_good_is_recommended():
    outcome = make_results({0.0: 1.0, 0.5: 0.8, 0.75: 0.601, 1.0: 0.6, 1.25: 0.9})
    assert outcome.recommended == 0.75 and "1 is closest" in outcome.recommendation


def test_the_sentence_lists_the_strengths_that_are_clearly_better():
    wide = {0.0: (1.0,) * 5, 0.5: (0.3, 1.4, 0.4, 1.5, 0.3), 1.0: (0.9,) * 5, 1.25: (0.2, 1.5, 0.1, 1.4, 0.1)}
    outcome = compare_values(wide)
    assert outcome.strengths[1.25][PRIMARY].adapted < outcome.strengths[0.5][PRIMARY].adapted < 0.9
    assert outcome.recommended == 1.0
    assert outcome.recommendation.startswith("Of the strengths that are clearly closer")
    assert "less" not in outcome.recommendation, "at 0.5 it was not clearly larger"


def test_no_strength_is_recommended_where_none_beats_the_base():
    outcome = make_results({0.0: 1.0, 0.5: 1.1, 1.0: 1.2})
    assert outcome.recommended is None and "At no strength" in outcome.recommendation
    unsure = make_results({0.0: 1.0, 0.5: 0.99, 1.0: 0.99}, (-0.3, 0.3, 0.2, -0.2, 0.1))
    assert unsure.recommended is None


def test_without_a_sweep_nothing_is_recommended():
    clip = Clip("0", "0.mp4", 0.0, 8.0, "", "test", 0.0, 0.0, 0.0)
    outcome = Results(
        [ClipResult(clip, {"base": ClipMeasurement({PRIMARY: 1.0}), "adapted": ClipMeasurement({PRIMARY: 0.5})})]
    )
    compare_strengths(outcome)
    assert (outcome.strengths, outcome.recommended) == ({}, None)


def test_invalid_strengths_are_refused():
    assert strengths_to_try([1.0, 0.5, 0.0, 0.25, 0.5]) == (0.25, 0.5)
    for value in (-0.1, 1.6, float("nan")):
        with pytest.raises(ConfigError, match="from 0"):
            strengths_to_try([value])
