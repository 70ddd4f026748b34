"""Which strength is recommended: the smallest of those that are about as good as the best."""

import numpy as np
import pytest

from mmaudio.data.clips import Clip
from mmaudio.errors import ConfigError
from mmaudio.evaluation.results import ClipMeasurement, ClipResult, Results
from mmaudio.evaluation.strength_sweep import (
    DEFAULT_STRENGTHS,
    compare_strengths,
    default_strengths,
    describe_forgetting,
    strengths_to_try,
)
from mmaudio.metrics.registry import METRICS, PRIMARY
from mmaudio.metrics.statistics import compare

SPREAD = (-0.02, 0.0, 0.02, 0.01, -0.01)
"""How the videos differ from their mean."""


FORGETTING = {0.0: 1.0, 0.5: 1.02, 0.75: 1.08, 1.0: 1.5, 1.25: 1.9}
"""Distances on other audio."""


def make_results(means, spread=SPREAD):
    """A clip of each of five videos whose primary metric is `means` by strength; the videos move together."""
    return compare_values(
        {strength: [mean + offset * strength for offset in spread] for strength, mean in means.items()}
    )


def compare_values(values):
    """A clip of each video whose primary metric is `values` by strength."""
    results = build_results({PRIMARY: values})
    compare_strengths(results)
    return results


def build_results(values_by_metric):
    """A clip of each video with values by metric and strength."""
    clips, first = [], next(iter(values_by_metric.values()))
    for number in range(len(first[0.0])):
        clip = Clip(f"{number}", f"{number}.mp4", 0.0, 8.0, "", "test", 0.0, 0.0, 0.0)
        sounds = {
            strength: ClipMeasurement({name: values[strength][number] for name, values in values_by_metric.items()})
            for strength in first
        }
        strengths = {strength: sound for strength, sound in sounds.items() if strength not in (0.0, 1.0)}
        clips.append(ClipResult(clip, {"base": sounds[0.0], "adapted": sounds[1.0]}, strengths=strengths))
    return Results(clips)


def test_by_default_strengths_are_tried_where_there_are_videos_to_tell_them_apart():
    assert [default_strengths(videos) for videos in (1, 2, 3, 40)] == [(), (), DEFAULT_STRENGTHS, DEFAULT_STRENGTHS]


def around(means):
    """Values of five videos around their means by strength."""
    return {strength: [mean + offset for offset in SPREAD] for strength, mean in means.items()}


DISTANCES = {0.0: 1.0, 0.5: 0.8, 0.75: 0.602, 1.0: 0.6, 1.25: 0.599}
ONSETS = {0.0: 0.7, 0.5: 0.6, 0.75: 0.65, 1.0: 0.8, 1.25: 0.8}
"""The onsets of the adapter at 0.75 are clearly worse than as trained, by the same in every video."""


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


BARELY = (0.62, 0.92, 0.7, 0.94, 0.65)
"""Better than the base, 1 in every video, by a 95 % interval, but not by one of 98.3 %."""


def test_one_of_several_strengths_has_to_be_better_by_more_where_the_adapter_as_trained_is_not():
    unsure = {0.0: (1.0,) * 5, 0.5: BARELY, 0.75: (1.1,) * 5, 1.0: (0.9, 1.2, 1.0, 1.3, 0.8), 1.25: (1.2,) * 5}
    outcome = compare_values(unsure)
    assert outcome.strengths[0.5][PRIMARY].verdict == "better"
    assert outcome.recommended is None and "At no strength" in outcome.recommendation
    alone = compare_values({strength: unsure[strength] for strength in (0.0, 0.5, 1.0)})
    assert alone.recommended == 0.5, "of one other than the adapter as trained"
    assert compare_values(unsure | {1.0: BARELY}).recommended == 0.5, "the adapter as trained is better"


@pytest.mark.slow
def test_without_an_effect_hardly_a_strength_is_recommended():
    """400 repeats in which every strength has noise of its own: what is called better is so by chance."""
    rng, recommended = np.random.default_rng(0), 0
    for _ in range(400):
        values = {strength: rng.normal(1.0, 0.2, 5).tolist() for strength in DISTANCES}
        values[0.0] = [1.0] * 5
        recommended += compare_values(values).recommended is not None
    assert recommended / 400 <= 0.055


def values_that_vary(means):
    """Values whose distances vary from strength to strength, so that small differences are chance."""
    return {
        s: [m + o * (1 if n % 2 else -1) for n, o in enumerate(SPREAD)] if s == 0.75 else [m + o for o in SPREAD]
        for s, m in means.items()
    }


def test_a_strength_that_is_clearly_worse_in_onsets_is_not_recommended():
    by_distance = build_results({PRIMARY: values_that_vary(DISTANCES)})
    compare_strengths(by_distance)
    assert by_distance.recommended == 0.75
    results = build_results({PRIMARY: values_that_vary(DISTANCES), "onset_f1": around(ONSETS)})
    compare_strengths(results)
    assert results.recommended in (1.0, 1.25)
    assert results.recommendation.endswith(
        "Clearly worse than the adapter as trained: 0.5 (mel distance, loud cells and onset F1), 0.75 (onset F1)."
    )


def test_where_every_strength_that_helps_loses_onsets_none_is_recommended():
    distances = {0.0: (1.0,) * 5, 0.5: (0.5,) * 5, 1.0: (0.1, 1.9, 0.2, 1.8, 1.0)}
    onsets = {0.0: (0.9,) * 5, 0.5: (0.4,) * 5, 1.0: (0.8, 0.81, 0.82, 0.8, 0.8)}
    results = build_results({PRIMARY: distances, "onset_f1": onsets})
    compare_strengths(results)
    assert results.recommended is None
    assert results.recommendation.startswith(
        "No strength can be recommended. Clearly worse than the adapter as trained: 0.5"
    )


def test_the_recommendation_says_what_is_forgotten_at_every_strength_that_counts():
    results, general = (
        build_results({PRIMARY: values_that_vary(means)}) for means in (DISTANCES, {**DISTANCES, **FORGETTING})
    )
    compare_strengths(results, general)
    assert list(general.strengths) == list(results.strengths)
    assert general.strengths[0.5][PRIMARY].difference == pytest.approx(0.02)
    assert results.recommendation.endswith(" Distance on other audio, against the base's: +8 % at 0.75, +50 % at 1.")
    trained = build_results({PRIMARY: around({0.0: 1.0, 0.5: 0.9, 1.0: 0.6})})
    compare_strengths(trained, build_results({PRIMARY: around({0.0: 1.0, 0.5: 1.1, 1.0: 1.5})}))
    assert trained.recommended == 1.0 and trained.recommendation.endswith(
        " Distance on other audio, against the base's: +50 % at 1."
    )


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


def test_a_change_that_rounds_to_nothing_has_no_minus():
    results = build_results({PRIMARY: {0.0: [1.0, 1.0, 1.0], 1.0: [0.998, 0.999, 0.998]}})
    comparison = compare([1.0, 1.0, 1.0], [0.998, 0.999, 0.998], list(results.videos), METRICS[PRIMARY].better)
    assert describe_forgetting({1.0: {PRIMARY: comparison}}, None).endswith("against the base's: +0 % at 1.")
