"""Tables of prompts that change over time."""

import math

import pytest

from mmaudio.errors import DataError
from mmaudio.generation.prompt_table import TimedPrompt, check_prompts_end, read_prompts


def write(tmp_path, *rows):
    path = tmp_path / "prompts.tsv"
    path.write_text("\n".join(["from\tto\tprompt", *("\t".join(row) for row in rows)]))
    return path


def test_times_are_seconds_or_minutes_and_seconds(tmp_path):
    path = write(tmp_path, ("0", "12.5", "rain"), ("12.5", "1:02.5", "a dog"), ("1:02.5", "", "wind"))
    assert read_prompts(path) == (
        TimedPrompt(0, 12.5, "rain"),
        TimedPrompt(12.5, 62.5, "a dog"),
        TimedPrompt(62.5, math.inf, "wind"),
    )


def test_commas_separate_columns_too(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('from,to,prompt\n0,,"rain, far away"\n')
    assert read_prompts(path) == (TimedPrompt(0, math.inf, "rain, far away"),)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("0", "5", "rain"), ("4", "9", "wind")], r"line 3: it begins at 4 s, and the row above ends at 5 s"),
        ([("0", "5", "rain"), ("6", "9", "wind")], r"line 3: no prompt from 5 s to 6 s"),
        ([("1", "5", "rain")], r"line 2: no prompt from 0 s to 1 s"),
        ([("0", "", "rain"), ("6", "9", "wind")], r"line 3: it begins at 6 s, and the row above goes on to the end"),
        ([("5", "2", "rain")], r"line 2: it ends at 2 s, and begins at 5 s"),
        ([("0", "5", " ")], r"line 2: the prompt is empty"),
        ([("0", "soon", "rain")], r"line 2: to is 'soon'; seconds such as 12.5"),
        ([("", "5", "rain")], r"line 2: from is ''"),
        ([("-1", "5", "rain")], r"line 2: from is '-1'"),
        ([], r"no row below the first line"),
    ],
)
def test_a_wrong_table_is_one_clear_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_prompts(write(tmp_path, *rows))


def test_missing_columns_are_named(tmp_path):
    (tmp_path / "a.tsv").write_text("start\tprompt\n0\train\n")
    with pytest.raises(DataError, match="names start, prompt; needed are: from, to, prompt"):
        read_prompts(tmp_path / "a.tsv")


def test_prompts_end_with_the_audio():
    rain, wind = TimedPrompt(0, 10, "rain"), TimedPrompt(10, math.inf, "wind")
    check_prompts_end((rain, wind), 20)
    check_prompts_end((rain,), 10)
    with pytest.raises(DataError, match=r"end at 10 s, and the audio goes on at 20 s"):
        check_prompts_end((rain,), 20)
    with pytest.raises(DataError, match=r"end at 10 s, beyond the end of the audio at 8 s"):
        check_prompts_end((rain,), 8)
    with pytest.raises(DataError, match=r"'wind' begins at 10 s, the audio ends at 9 s"):
        check_prompts_end((rain, wind), 9)
