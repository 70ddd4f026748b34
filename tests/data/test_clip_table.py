"""The table of clips: what is not valid is refused with its line, and no other file is overwritten."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import split_command
from video_files import write_tone_video

from mmaudio.data.clip_table import read_clips, write_clips
from mmaudio.data.clips import Clip
from mmaudio.errors import ConfigError, DataError


def test_a_hand_made_table_is_checked(tmp_path):
    table = tmp_path / "clips.tsv"
    splits = ("train", "val", "test")
    write_clips(table, [Clip(f"{n}_0", f"{n}.mp4", 0.0, 1.0, "", split, -3, -9, 0) for n, split in enumerate(splits)])
    header, first, *rest = table.read_text().splitlines()
    for wrong, reason in (
        ([header, first, first], "twice"),
        ([header, first.replace("train", "trian").replace("val", "vla").replace("test", "tset")], "line 2: split"),
        ([header, first.replace("0.0", "zero", 1)], "line 2"),
        (["id\tvideo", "a\tb"], "no column start"),
    ):
        table.write_text("\n".join([*wrong, *rest][:3]) + "\n")
        with pytest.raises(DataError, match=reason):
            read_clips(table)
    with pytest.raises(DataError, match="split the videos first"):
        read_clips(tmp_path / "none.tsv")


@pytest.mark.parametrize("name", ["a.mp4", "words.tsv", "folder.tsv", "clips"])
def test_the_table_never_overwrites_another_file(tmp_path, name):
    write_tone_video(tmp_path / "a.mp4", 2)
    (tmp_path / "words.tsv").write_text("video\tcaption\na.mp4\ta bell\n")
    (tmp_path / "folder.tsv").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="--output_tsv takes a name"):
        split_command("--input_dir", tmp_path, "--output_tsv", tmp_path / name, "--seconds", "1", "--stride", "0.5")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("start", "nan"),
        ("end", "inf"),
        ("start", "-1"),
        ("id", ""),
        ("video", ""),
        ("gain_db", "nan"),
        ("gain_db", "1e9"),
        ("gain_db", "-201"),
    ],
)
def test_a_clip_with_a_cell_that_makes_no_sense_is_refused(tmp_path, column, value):
    row = {"id": "a_0", "video": "a.mp4", "start": "0", "end": "8", "caption": "", "split": "train"}
    row |= {"peak_db": "-1", "rms_db": "-9", "silence": "0", column: value}
    table = tmp_path / "clips.tsv"
    table.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    with pytest.raises(DataError, match=r"clips\.tsv, line 2"):
        read_clips(table)


def test_a_row_with_missing_cells_is_reported(tmp_path):
    (tmp_path / "clips.tsv").write_text(
        "id\tvideo\tstart\tend\tcaption\tsplit\tpeak_db\trms_db\tsilence\na_0\ta.mp4\t0\t8\n"
    )
    with pytest.raises(DataError, match=r"clips\.tsv, line 2: fewer cells"):
        read_clips(tmp_path / "clips.tsv")


def test_an_overlong_cell_is_refused(tmp_path):
    row = "\t".join(["a_0", "a.mp4", "0", "8", "x" * 200_000, "train", "-1", "-9", "0"])
    (tmp_path / "clips.tsv").write_text(
        f"id\tvideo\tstart\tend\tcaption\tsplit\tpeak_db\trms_db\tsilence\n{row}\n",
    )
    with pytest.raises(DataError, match=r"clips\.tsv, line 2: field larger"):
        read_clips(tmp_path / "clips.tsv")


def test_tables_without_the_newer_columns_stay_valid(tmp_path):
    table, clip = tmp_path / "clips.tsv", Clip("a_0", "a.mp4", 0.0, 8.0, "", "train", -1.0, -9.0, 0.0)
    table.write_text(
        "id\tvideo\tstart\tend\tcaption\tsplit\tpeak_db\trms_db\tsilence\na_0\ta.mp4\t0\t8\t\ttrain\t-1\t-9\t0\n"
    )
    assert read_clips(table) == [clip]
    chosen = replace(clip, track=1, video_track=0, channel=1, notes="time stamps out of order")
    write_clips(table, [chosen])
    assert read_clips(table) == [chosen]
    table.write_text(table.read_text().replace("\t0\t1\ttime", "\t0\t-1\ttime"))
    with pytest.raises(DataError, match=r"line 2: tracks and channels are counted from 0"):
        read_clips(table)
