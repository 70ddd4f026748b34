"""The parts of a report below its numbers: what is said of the training."""

from mmaudio.report.sections import training

HISTORY = [
    {"step": 0, "validation/loss": 2.0},
    {"step": 5, "validation/loss": 1.0},
    {"step": 9, "validation/loss": 3.0},
]


def test_the_adapter_that_is_compared_is_not_called_the_best():
    made = training(HISTORY, 9)
    assert "this adapter, step 9" in made["charts"]["wide"] and "best" not in made["charts"]["wide"]
    assert made["note"].endswith("1.000 at its lowest. The adapter is that of step 9.")


def test_of_an_adapter_that_does_not_say_its_step_none_is_told():
    made = training(HISTORY, None)
    assert "adapter" not in made["charts"]["wide"] + made["note"]
