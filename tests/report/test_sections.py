"""The report's sections about training and about the strength."""

from mmaudio.evaluation.results import Results
from mmaudio.metrics.registry import PRIMARY
from mmaudio.metrics.statistics import compare
from mmaudio.report.sections import strength_section, training_section

HISTORY = [
    {"step": 0, "validation/loss": 2.0},
    {"step": 5, "validation/loss": 1.0},
    {"step": 9, "validation/loss": 3.0},
]


def test_the_compared_adapter_is_not_called_the_best():
    section = training_section(HISTORY, 9)
    assert "this adapter, step 9" in section["charts"]["wide"] and "best" not in section["charts"]["wide"]
    assert section["note"].endswith("1.000 at its lowest. The adapter is that of step 9.")


def test_an_adapter_without_a_step_has_no_mark_in_the_curve():
    section = training_section(HISTORY, None)
    assert "adapter" not in section["charts"]["wide"] + section["note"]


def test_the_gain_is_drawn_against_what_is_forgotten_with_the_recommended_strength():
    videos = ("a", "b", "c")

    def results(*means):
        at = {s: {PRIMARY: compare((1.0, 1.1, 0.9), [m, m + 0.1, m - 0.1], videos, "lower")} for s, m in means}
        return Results([], strengths=at, recommended=0.5)

    held_out, general = results((0.0, 1.0), (0.5, 0.7), (1.0, 0.6)), results((0.0, 1.0), (0.5, 1.1), (1.0, 1.5))
    section = strength_section(held_out, general)
    first = section["charts"][0]
    assert first["title"] == "Gain against forgetting" and ">0.5, recommended</text>" in first["wide"]
    assert first["wide"].count("<circle") == 3 and "closer on your videos, %" in first["narrow"]
    assert section["titles"][-1] == "Mel distance, loud cells, other audio"
    assert [row["cells"][-1]["text"] for row in section["rows"]] == ["1.000", "1.100", "1.500"]
    alone = strength_section(held_out)
    assert [chart["title"] for chart in alone["charts"]] == ["Mel distance, loud cells"] and len(alone["titles"]) == 1
