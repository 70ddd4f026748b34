"""The report's section about training."""

from mmaudio.report.sections import training_section

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
