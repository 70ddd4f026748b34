"""Tables that are not as they were written: used, with a note that names the rows; no edited table is lost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mmaudio.data.clip_table import read_clips, write_clips
from mmaudio.data.clips import Clip
from mmaudio.data.table_checksums import checksums_path, describe_changes
from mmaudio.errors import DataError

CLIPS = [
    Clip(f"a_{n}", "a.mp4", 4.0 * n, 4.0 * n + 8, f'a "bell", {n}', "train", -3.0, -20.25, 0.5, gain_db=1.5, lufs=-23.0)
    for n in range(4)
]


@pytest.fixture
def table(tmp_path):
    write_clips(tmp_path / "clips.tsv", CLIPS)
    return tmp_path / "clips.tsv"


def test_a_table_as_written_is_read_without_a_note(table, capsys):
    before = read_clips(table)
    assert before == CLIPS and not write_clips(table, CLIPS)
    table.write_text(table.read_text().replace("\n", "\r\n").replace("-3.0", "-3"), encoding="utf-8-sig")
    assert read_clips(table) == before and not capsys.readouterr().err


def test_edited_rows_are_used_and_named(table, capsys):
    lines = table.read_text().splitlines()
    new = lines[1].replace("a_0", "b_0")
    table.write_text("\n".join([lines[0], lines[1].replace("bell", "drum"), *lines[3:], new]) + "\n")
    assert [clip.caption[3:7] for clip in read_clips(table)] == ["drum", "bell", "bell", "bell"]
    error_output = capsys.readouterr().err
    assert "of its rows 1 differ (a_0); 1 are new (b_0); 1 are gone (a_1). They are used as they are" in error_output
    read_clips(table)
    assert not capsys.readouterr().err, "once"


def test_an_edited_table_is_kept_when_the_videos_are_split_again(table, capsys):
    edited = []
    for word in ("drum", "horn"):
        table.write_text(table.read_text().replace("bell", word))
        edited.append(table.read_bytes())
        assert write_clips(table, CLIPS) and read_clips(table) == CLIPS
        assert "was edited since it was written; that table is kept as clips.edited-" in capsys.readouterr().err
    assert [table.with_name(f"clips.edited-{number}.tsv").read_bytes() for number in (1, 2)] == edited
    assert write_clips(table, CLIPS[:2]) and not table.with_name("clips.edited-3.tsv").exists()


def test_a_table_without_checksums_is_not_checked(table, capsys):
    checksums_path(table).unlink()
    table.write_text(table.read_text().replace("bell", "drum"))
    assert read_clips(table)[0].caption == 'a "drum", 0'
    assert not write_clips(table, read_clips(table)) and checksums_path(table).is_file()
    checksums_path(table).write_text("{broken")
    assert read_clips(table) and not capsys.readouterr().err


@pytest.mark.slow
def test_no_flipped_bit_of_a_table_changes_a_clip_unnoticed(table):
    content, draw = table.read_bytes(), random.Random(0)
    for bit in draw.sample(range(8 * len(content)), 200):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        table.write_bytes(changed)
        try:
            clips = read_clips(table)
        except DataError:
            continue
        assert clips == CLIPS or describe_changes(table, clips), bit


def test_a_caption_that_changes_is_written_with_its_checksum(table, capsys):
    write_clips(table, [replace(clip, caption="new") for clip in CLIPS])
    assert read_clips(table)[0].caption == "new" and not capsys.readouterr().err
