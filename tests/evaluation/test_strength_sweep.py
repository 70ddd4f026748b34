"""Which strength is recommended: the smallest of those that are about as good as the best."""

import pytest

from mmaudio.data.clips import Clip
from mmaudio.errors import ConfigError
from mmaudio.evaluation.inference import Sound
from mmaudio.evaluation.results import ClipResult, Results
from mmaudio.evaluation.strength_sweep import chosen_strengths, compare_strengths
from mmaudio.metrics.registry import PRIMARY

SPREAD = (-0.02, 0.0, 0.02, 0.01, -0.01)
"""How the videos differ from their mean."""


def results(means, spread=SPREAD):
    """A clip of each of five videos whose primary metric is `means` by strength; the videos move together."""
    return of_values({strength: [mean + offset * strength for offset in spread] for strength, mean in means.items()})


def of_values(values):
    """A clip of each video whose primary metric is `values` by strength."""
    made = []
    for number in range(len(values[0.0])):
        clip = Clip(f"{number}", f"{number}.mp4", 0.0, 8.0, "", "test", 0.0, 0.0, 0.0)
        sounds = {strength: Sound({PRIMARY: own[number]}) for strength, own in values.items()}
        strengths = {strength: sound for strength, sound in sounds.items() if strength not in (0.0, 1.0)}
        made.append(ClipResult(clip, {"base": sounds[0.0], "adapted": sounds[1.0]}, strengths=strengths))
    found = Results(made)
    compare_strengths(found)
    return found


def test_the_best_where_less_is_clearly_worse():
    found = results({0.0: 1.0, 0.5: 0.8, 0.75: 0.7, 1.0: 0.6, 1.25: 0.9})
    assert found.recommended == 1.0 and "less of it loses more" in found.recommendation
    assert list(found.strengths) == [0.0, 0.5, 0.75, 1.0, 1.25]
    assert found.strengths[0.5][PRIMARY].difference == pytest.approx(-0.2)
    assert found.strengths[0.0][PRIMARY].difference == 0


def test_the_smallest_that_is_about_as_good():
    found = results({0.0: 1.0, 0.5: 0.8, 0.75: 0.601, 1.0: 0.6, 1.25: 0.9})
    assert found.recommended == 0.75 and "1 is closest" in found.recommendation


def test_what_is_said_is_of_the_strengths_that_are_clearly_better():
    wide = {0.0: (1.0,) * 5, 0.5: (0.3, 1.4, 0.4, 1.5, 0.3), 1.0: (0.9,) * 5, 1.25: (0.2, 1.5, 0.1, 1.4, 0.1)}
    found = of_values(wide)
    assert found.strengths[1.25][PRIMARY].adapted < found.strengths[0.5][PRIMARY].adapted < 0.9
    assert found.recommended == 1.0
    assert found.recommendation.startswith("Of the strengths that are clearly closer")
    assert "less" not in found.recommendation, "at 0.5 it was not clearly larger"


def test_none_where_none_is_better_than_the_base():
    found = results({0.0: 1.0, 0.5: 1.1, 1.0: 1.2})
    assert found.recommended is None and "At no strength" in found.recommendation
    unsure = results({0.0: 1.0, 0.5: 0.99, 1.0: 0.99}, (-0.3, 0.3, 0.2, -0.2, 0.1))
    assert unsure.recommended is None


def test_nothing_was_tried():
    clip = Clip("0", "0.mp4", 0.0, 8.0, "", "test", 0.0, 0.0, 0.0)
    found = Results([ClipResult(clip, {"base": Sound({PRIMARY: 1.0}), "adapted": Sound({PRIMARY: 0.5})})])
    compare_strengths(found)
    assert (found.strengths, found.recommended) == ({}, None)


def test_strengths_that_are_none_are_refused():
    assert chosen_strengths([1.0, 0.5, 0.0, 0.25, 0.5]) == (0.25, 0.5)
    for value in (-0.1, 1.6, float("nan")):
        with pytest.raises(ConfigError, match="from 0"):
            chosen_strengths([value])
