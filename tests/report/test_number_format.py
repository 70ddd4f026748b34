"""Numbers as a report prints them."""

import math

import pytest

from mmaudio.metrics.statistics import Comparison
from mmaudio.report.metric_table import metric_rows
from mmaudio.report.number_format import format_number, format_percent, format_signed


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
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("change", "text"), [(-0.3, "−30"), (0.0996, "+10"), (-0.002, "−0.2"), (-0.0102, "−1.0"), (-1e-9, "0"), (0.0, "0")]
)
def test_a_rounded_zero_has_no_sign(change, text):
    assert format_percent(change, 1.0) == f"{text}\u202f%" and format_percent(change, 0.0) == ""


def test_a_small_clear_change_is_not_shown_as_zero():
    comparison = Comparison(0.0123, 0.0119, -0.0004, (-0.0007, -0.0001), "lower", "better", 9, 9, 0.9)
    row = metric_rows({"near_silent": comparison})[0]
    assert (row["difference"], row["interval"]) == ("−0.000400", "−0.000700 to −0.000100")
    assert format_signed(1e-17) == "0.000" and format_signed(0.0004) == "+0.000400"
