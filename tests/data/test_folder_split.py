"""Splitting: every file is used or named with its reason, the counts add up, and nothing leaks from training."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from media import RATE, cut_off, frames, make_video, tone

from mmaudio.data.clips import find_videos, left_out_path, read_clips, read_left_out
from mmaudio.data.folder_split import SplitSettings, split_folder
from mmaudio.data.scan import ScanSettings, ScanStore, Span, scan_video
from mmaudio.data.splits import Shares, divide
from mmaudio.errors import ConfigError, DataError, MMAudioError
from mmaudio.media.mux import write_video

SCRIPT = Path(__file__).parents[2] / "training" / "split_videos_for_finetuning.py"
SETTINGS = ScanSettings(seconds=1.0, stride=0.5)


def split_command(*arguments):
    """The command's exit status, run in this process."""
    spec = importlib.util.spec_from_file_location("split_command", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """A folder with everything that goes wrong, clips of 1 s in mind."""
    root = tmp_path_factory.mktemp("messy videos")
    for name in ("a.mp4", "b é's.mp4", "c.mp4", "d.mp4"):
        make_video(root / name, 2)
    (root / "a.txt").write_text("a bell\nrings \n")
    make_video(root / "no sound.mp4", 2, sound=False)
    make_video(root / "short.mp4", 0.5)
    make_video(root / "silent.mp4", 2, amplitude=0.0)
    cut_off(root / "a.mp4", root / "cut.mp4")
    (root / "half.mp4").write_bytes((root / "a.mp4").read_bytes()[:4000])
    (root / "notes.mp4").write_text("these are notes, no video\n" * 50)
    (root / "empty.mp4").write_bytes(b"")
    (root / "picture.jpg").write_bytes(b"\xff\xd8\xff")
    (root / ".hidden.mp4").write_bytes(b"")
    half_silent = np.concatenate([tone(1.0), np.zeros(2 * RATE, np.float32)])
    write_video(root / "half silent.mp4", frames(75), 25, half_silent, RATE)
    return root


REASONS = {
    "cut.mp4": "cut off: 2.00 s are stated",
    "empty.mp4": "an empty file",
    "half.mp4": "cut off: the index",
    "no sound.mp4": "no sound",
    "notes.mp4": "no video",
    "picture.jpg": "no video file (.jpg)",
    "short.mp4": "shorter than a clip of 1 s",
    "silent.mp4": "silent throughout",
}


@pytest.mark.slow
def test_every_file_is_used_or_left_out_with_its_reason(messy, tmp_path):
    result = split_folder(messy, SplitSettings(SETTINGS), ScanStore(tmp_path / "scans.jsonl"))
    reasons = {row.video: row.reason for row in result.unused}
    assert reasons.keys() == REASONS.keys()
    for video, reason in REASONS.items():
        assert reason in reasons[video]
    assert result.found == result.used + len(result.unused) == 13
    assert {row.video for row in result.unused_windows} == {"half silent.mp4"}
    assert "silent: peak -120.0 dB, at least -60 dB" in {row.reason for row in result.unused_windows}
    assert {clip.caption for clip in result.clips if clip.video == "a.mp4"} == {"a bell rings"}
    assert {clip.caption for clip in result.clips if clip.video != "a.mp4"} == {""}
    assert {clip.split for clip in result.clips} == {"train", "val", "test"}
    splits = {clip.video: {other.split for other in result.clips if other.video == clip.video} for clip in result.clips}
    assert all(len(split) == 1 for split in splits.values())


def test_the_command_writes_tables_that_read_back_and_says_the_counts(messy, tmp_path, capsys):
    table = tmp_path / "clips.tsv"
    flags = ("--input_dir", messy, "--output_tsv", table, "--seconds", 1, "--stride", 0.5, "--prompt", "a\ttone")
    assert split_command(*flags) == 0
    said = capsys.readouterr().out
    assert "found 13 files = 5 used + 8 left out (looked through 13, 0 had not changed)" in said
    for video in REASONS:
        assert f"left out: {video}: " in said
    clips = read_clips(table)
    assert {clip.caption for clip in clips} == {"a bell rings", "a tone"}
    assert len({clip.id for clip in clips}) == len(clips)
    assert f"= {len(clips)} clips + " in said
    assert {row.video for row in read_left_out(left_out_path(table)) if row.start is None} == REASONS.keys()

    before, stamp = table.read_bytes(), table.stat().st_mtime_ns
    assert split_command(*flags) == 0
    said = capsys.readouterr().out
    assert "(looked through 0, 13 had not changed)" in said
    assert "still valid" in said
    assert (table.read_bytes(), table.stat().st_mtime_ns) == (before, stamp)


def test_a_table_inside_the_folder_is_no_input(messy, tmp_path):
    for path in find_videos(messy)[:4]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    flags = ("--input_dir", tmp_path, "--output_tsv", tmp_path / "clips.tsv", "--seconds", 1)
    split_command(*flags)
    before = (tmp_path / "clips.tsv").read_bytes()
    split_command(*flags)
    assert (tmp_path / "clips.tsv").read_bytes() == before
    assert "clips" not in (tmp_path / "clips.left_out.tsv").read_text()


@pytest.mark.slow
def test_only_changed_files_are_looked_at_again(messy, tmp_path):
    store = tmp_path / "scans.jsonl"
    settings = SplitSettings(SETTINGS)
    whole = split_folder(messy, settings, ScanStore(store))
    lines = store.read_bytes().splitlines(keepends=True)
    store.write_bytes(b"".join(lines[:5]) + lines[5][:30])  # killed while the sixth line was written
    again = split_folder(messy, settings, ScanStore(store))
    assert again.scanned == whole.found - 5
    assert (again.clips, again.left_out) == (whole.clips, whole.left_out)
    assert split_folder(messy, settings, ScanStore(store)).scanned == 0
    assert split_folder(messy, SplitSettings(ScanSettings(1.0, 0.25)), ScanStore(store)).scanned == whole.found


def test_nothing_usable_is_one_error_after_the_reasons(tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    flags = ("--input_dir", videos, "--output_tsv", tmp_path / "clips.tsv")
    with pytest.raises(DataError, match="no file in it"):
        split_command(*flags)
    (videos / "sub").mkdir()
    with pytest.raises(DataError, match="searched with --recursive"):
        split_command(*flags)
    with pytest.raises(DataError, match="not there; a folder of videos"):
        split_command("--input_dir", tmp_path / "none", *flags[2:])
    make_video(videos / "short.mp4", 1)
    with pytest.raises(DataError, match="none of its 1 files can be used"):
        split_command(*flags)
    assert "found 1 files = 0 used + 1 left out" in capsys.readouterr().out
    assert not (tmp_path / "clips.tsv").exists()


@pytest.mark.parametrize(("seconds", "windows"), [(7.9, 0), (8.0, 1), (11.9, 1), (12.0, 2), (32.0, 7)])
def test_windows_of_8_s_every_4_s(tmp_path, seconds, windows):
    path = tmp_path / "a.mp4"
    write_video(path, frames(round(seconds * 10), side=16), 10, tone(seconds, 8000), 8000)
    scan = scan_video(path, ScanSettings())
    assert [span.start for span in scan.spans] == [4.0 * index for index in range(windows)]
    assert bool(scan.reason) == (windows == 0)


def test_the_sound_is_measured(tmp_path):
    sound = np.concatenate([np.zeros(RATE // 2, np.float32), tone(0.5)])
    write_video(tmp_path / "a.mp4", frames(25), 25, sound, RATE)
    (span,) = scan_video(tmp_path / "a.mp4", ScanSettings(seconds=1.0)).spans
    assert span.peak_db == pytest.approx(-6, abs=1)
    assert span.rms_db == pytest.approx(-12, abs=0.5)
    assert span.silence == pytest.approx(0.5, abs=0.1)


def test_a_window_whose_sound_ends_early_is_left_out(tmp_path):
    write_video(tmp_path / "a.mp4", frames(75), 25, tone(1.2), RATE)
    make_video(tmp_path / "b.mp4", 3)
    make_video(tmp_path / "c.mp4", 3)
    result = split_folder(tmp_path, SplitSettings(ScanSettings(1.0, 1.0)), ScanStore(tmp_path / "scans.jsonl"))
    assert [row.reason.split(":")[0] for row in result.unused_windows] == ["sound missing"] * 2
    assert [row.start for row in result.unused_windows] == [1.0, 2.0]


def windows(seconds):
    """Windows of 8 s every 4 s of a video of that length."""
    return [Span(4.0 * i, 4.0 * i + 8, -3.0, -20.0, 0.0) for i in range(int((seconds - 8) // 4) + 1)]


def splits_of(divided):
    return {video: next(iter(parts)) for video, parts in divided.items()}


def test_whole_videos_are_held_out_and_few_move_when_one_is_added():
    videos = {f"video {n}.mp4": windows(32) for n in range(20)}
    divided, notes = divide(videos, Shares())
    counts = [list(splits_of(divided).values()).count(split) for split in ("train", "val", "test")]
    assert counts == [14, 2, 4]
    assert notes == []
    assert all(parts[next(iter(parts))] == windows(32) for parts in divided.values())
    more, _ = divide({**videos, "new.mp4": windows(32)}, Shares())
    before, after = splits_of(divided), splits_of(more)
    assert sum(before[video] != after[video] for video in videos) <= 2
    three, _ = divide({name: windows(8) for name in "abc"}, Shares())
    assert sorted(splits_of(three).values()) == ["test", "train", "val"]


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_videos_are_divided_in_time_with_a_gap(count):
    divided, notes = divide({str(n): windows(120) for n in range(count)}, Shares())
    assert notes == []
    for parts in divided.values():
        train, val, test = parts["train"], parts["val"], parts["test"]
        assert val[0].start - train[-1].end >= 8
        assert test[0].start - val[-1].end >= 8
        assert len(train) > len(test) >= len(val) >= 1


@pytest.mark.parametrize("seconds", [16, 24, 36])
def test_a_short_video_holds_out_one_part_and_says_so(seconds):
    divided, notes = divide({"a.mp4": windows(seconds)}, Shares())
    assert divided["a.mp4"].keys() == {"train", "test"}
    assert divided["a.mp4"]["train"][-1].end <= divided["a.mp4"]["test"][0].start
    assert "both" in notes[0]


def test_two_clips_are_one_to_train_on_and_one_to_hold_out():
    divided, notes = divide({"a.mp4": windows(10), "b.mp4": windows(10)}, Shares())
    assert sorted(splits_of(divided).values()) == ["test", "train"]
    assert "held out, for validation and test both" in notes[0]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_whole_folder_can_be_for_the_test(count):
    divided, notes = divide({f"{n}.mp4": windows(8) for n in range(count)}, Shares(val=0, test=1))
    assert set(splits_of(divided).values()) == {"test"} and len(divided) == count and not notes
    with pytest.raises(ConfigError, match="together below 1"):
        Shares(val=0.1, test=1)


def test_one_short_video_is_refused():
    with pytest.raises(DataError, match=r"at least 16 s of usable video"):
        divide({"a.mp4": windows(12)}, Shares())


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"val_ratio": -0.1}, {"val_ratio": 0.5, "test_ratio": 0.5}):
        with pytest.raises(ConfigError, match="together below 1"):
            SplitSettings(**wrong)
    with pytest.raises(ConfigError, match=r"at least 0\.64 s"):
        ScanSettings(seconds=0.5)
    with pytest.raises(ConfigError, match="stride"):
        ScanSettings(stride=0)


def test_a_hand_made_table_is_checked(messy, tmp_path):
    table = tmp_path / "clips.tsv"
    split_command("--input_dir", messy, "--output_tsv", table, "--seconds", 1)
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


def test_odd_names_links_and_folders(tmp_path):
    """Odd names are used; a link to a folder is followed once; what cannot be read is named and harms nothing else."""
    root, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    content = make_video(tmp_path / "a.mp4", 2).read_bytes()
    for path in (root / "-dash.mp4", root / "two\nlines.mp4", root / 'it\'s "q" é.mp4', elsewhere / "far.mp4"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (root / "dir.mp4").mkdir()
    (root / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    (root / "linked").symlink_to(elsewhere)
    (root / "self").symlink_to(root)
    Path(os.fsdecode(os.fsencode(root) + b"/latin\xe9.mp4")).write_bytes(content)
    settings = SplitSettings(SETTINGS, recursive=True)
    result = split_folder(root, settings, ScanStore(tmp_path / "scans.jsonl"))
    assert {row.video: row.reason for row in result.unused} == {
        "gone.mp4": "a link to a file that is not there",
        "loop.mp4": "cannot be read (Too many levels of symbolic links)",
        "latin\ufffd.mp4": "its name is no UTF-8; rename it",
    }
    assert {clip.video for clip in result.clips} == {
        "-dash.mp4",
        "two\nlines.mp4",
        'it\'s "q" é.mp4',
        "linked/far.mp4",
    }
    assert result.found == 7


def test_videos_in_sub_folders_are_pointed_out_and_results_among_the_videos_are_none(tmp_path, capsys):
    """A report's films hold generated sounds and held-out pictures: they never become training clips."""
    content = make_video(tmp_path / "a.mp4", 8).read_bytes()
    films = [tmp_path / "output" / name for name in ("try/report/media/001.mp4", "other/report/media/001.mp4")]
    for path in films:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    (tmp_path / "output" / "try" / "lora_checkpoints").mkdir()
    (tmp_path / "output" / "other" / "metrics.json").write_text("{}")
    flags = ("--input_dir", tmp_path, "--output_tsv", tmp_path / "lora_data" / "clips.tsv", "--seconds", 1)
    assert split_command(*flags) == 0
    assert "sub-folders" not in capsys.readouterr().out

    for name in ("b.mp4", "c.mp4"):
        (tmp_path / "2024").mkdir(exist_ok=True)
        (tmp_path / "2024" / name).write_bytes(content)
    assert split_command(*flags) == 0
    assert "note: sub-folders hold videos too, such as 2024/b.mp4: --recursive takes them" in capsys.readouterr().out
    assert split_command(*flags, "--recursive") == 0
    said = capsys.readouterr().out
    assert "found 3 files = 3 used" in said
    assert "sub-folders" not in said
    assert "captions: 0 of " in said
    assert "note: 2024/c.mp4 is the same file as 2024/b.mp4; take one away" in said


def test_a_place_that_cannot_be_written_is_one_line(messy, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(MMAudioError, match=r"file/clips\.scans\.jsonl: cannot be written \(.*\); make room there"):
        split_command("--input_dir", messy, "--output_tsv", tmp_path / "file" / "clips.tsv", "--seconds", 1)


@pytest.mark.parametrize("name", ["a.mp4", "words.tsv", "folder.tsv", "clips"])
def test_the_table_never_takes_the_place_of_another_file(tmp_path, name):
    make_video(tmp_path / "a.mp4", 2)
    (tmp_path / "words.tsv").write_text("video\tcaption\na.mp4\ta bell\n")
    (tmp_path / "folder.tsv").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="--output_tsv takes a name"):
        split_command("--input_dir", tmp_path, "--output_tsv", tmp_path / name, "--seconds", "1", "--stride", "0.5")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("column", "value"), [("start", "nan"), ("end", "inf"), ("start", "-1"), ("id", ""), ("video", "")]
)
def test_a_clip_without_a_place_or_a_name_is_refused(tmp_path, column, value):
    row = {"id": "a_0", "video": "a.mp4", "start": "0", "end": "8", "caption": "", "split": "train"}
    row |= {"peak_db": "-1", "rms_db": "-9", "silence": "0", column: value}
    table = tmp_path / "clips.tsv"
    table.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    with pytest.raises(DataError, match=r"clips\.tsv, line 2"):
        read_clips(table)


def test_a_row_that_ends_early_is_named(tmp_path):
    (tmp_path / "clips.tsv").write_text(
        "id\tvideo\tstart\tend\tcaption\tsplit\tpeak_db\trms_db\tsilence\na_0\ta.mp4\t0\t8\n"
    )
    with pytest.raises(DataError, match=r"clips\.tsv, line 2: fewer cells"):
        read_clips(tmp_path / "clips.tsv")


def test_a_cell_longer_than_tables_have_is_refused(tmp_path):
    row = "\t".join(["a_0", "a.mp4", "0", "8", "x" * 200_000, "train", "-1", "-9", "0"])
    (tmp_path / "clips.tsv").write_text(
        f"id\tvideo\tstart\tend\tcaption\tsplit\tpeak_db\trms_db\tsilence\n{row}\n",
    )
    with pytest.raises(DataError, match=r"clips\.tsv, line 2: field larger"):
        read_clips(tmp_path / "clips.tsv")
