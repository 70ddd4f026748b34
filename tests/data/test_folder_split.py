"""Splitting: every file is used or named with its reason, the counts add up, and nothing leaks from training."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import split_command
from video_files import RATE, grey_frames, tone, truncate_mp4, write_tone_video

from mmaudio.data import folder_split
from mmaudio.data.clip_table import left_out_path, read_clips, read_left_out, write_clips
from mmaudio.data.folder_split import SplitSettings, split_folder
from mmaudio.data.scan import ScanSettings
from mmaudio.data.scan_store import ScanStore
from mmaudio.data.video_files import find_videos
from mmaudio.errors import ConfigError, DataError, MMAudioError
from mmaudio.media.mux import write_video

SETTINGS = ScanSettings(seconds=1.0, stride=0.5)


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """A folder with everything that goes wrong, clips of 1 s in mind."""
    root = tmp_path_factory.mktemp("messy videos")
    for name in ("a.mp4", "b é's.mp4", "c.mp4", "d.mp4"):
        write_tone_video(root / name, 2)
    (root / "a.txt").write_text("a bell\nrings \n")
    write_tone_video(root / "no sound.mp4", 2, sound=False)
    write_tone_video(root / "short.mp4", 0.5)
    write_tone_video(root / "silent.mp4", 2, amplitude=0.0)
    truncate_mp4(root / "a.mp4", root / "cut.mp4")
    (root / "half.mp4").write_bytes((root / "a.mp4").read_bytes()[:4000])
    (root / "notes.mp4").write_text("these are notes, no video\n" * 50)
    (root / "empty.mp4").write_bytes(b"")
    (root / "picture.jpg").write_bytes(b"\xff\xd8\xff")
    (root / ".hidden.mp4").write_bytes(b"")
    half_silent = np.concatenate([tone(1.0), np.zeros(2 * RATE, np.float32)])
    write_video(root / "half silent.mp4", grey_frames(75), 25, half_silent, RATE)
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
    assert result.file_count == result.used + len(result.unused) == 13
    assert {row.video for row in result.unused_windows} == {"half silent.mp4"}
    assert "silent: peak -120.0 dB, at least -60 dB" in {row.reason for row in result.unused_windows}
    assert {clip.caption for clip in result.clips if clip.video == "a.mp4"} == {"a bell rings"}
    assert {clip.caption for clip in result.clips if clip.video != "a.mp4"} == {""}
    assert {clip.split for clip in result.clips} == {"train", "val", "test"}
    splits = {clip.video: {other.split for other in result.clips if other.video == clip.video} for clip in result.clips}
    assert all(len(split) == 1 for split in splits.values())


@pytest.mark.slow
def test_the_command_writes_tables_that_read_back_and_prints_the_counts(messy, tmp_path, capsys):
    table = tmp_path / "clips.tsv"
    flags = ("--input_dir", messy, "--output_tsv", table, "--seconds", 1, "--stride", 0.5, "--prompt", "a\ttone")
    assert split_command(*flags) == 0
    output = capsys.readouterr().out
    assert "found 13 files = 5 used + 8 left out (scanned 13, 0 had not changed)" in output
    for video in REASONS:
        assert f"left out: {video}: " in output
    clips = read_clips(table)
    assert {clip.caption for clip in clips} == {"a bell rings", "a tone"}
    assert len({clip.id for clip in clips}) == len(clips)
    assert f"= {len(clips)} clips + " in output
    assert {row.video for row in read_left_out(left_out_path(table)) if row.start is None} == REASONS.keys()

    before, stamp = table.read_bytes(), table.stat().st_mtime_ns
    assert split_command(*flags) == 0
    output = capsys.readouterr().out
    assert "(scanned 0, 13 had not changed)" in output
    assert "still valid" in output
    assert (table.read_bytes(), table.stat().st_mtime_ns) == (before, stamp)


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_tables(messy, tmp_path):
    tables = []
    for workers in (1, 3):
        table = tmp_path / str(workers) / "clips.tsv"
        flags = ("--input_dir", messy, "--output_tsv", table, "--seconds", 1, "--stride", 0.5, "--workers", workers)
        assert split_command(*flags) == 0
        tables.append([table.read_bytes(), left_out_path(table).read_bytes()])
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_files_that_are_scanned_in_this_process_give_the_same_clips(messy, tmp_path, monkeypatch):
    isolated = split_folder(messy, SplitSettings(SETTINGS), ScanStore(tmp_path / "isolated.jsonl"))
    monkeypatch.setattr(folder_split, "SubprocessPool", None)  # is not called
    in_process = split_folder(messy, SplitSettings(SETTINGS, isolated=False), ScanStore(tmp_path / "in_process.jsonl"))
    assert (in_process.clips, in_process.left_out) == (isolated.clips, isolated.left_out)
    again = split_folder(messy, SplitSettings(SETTINGS, isolated=False), ScanStore(tmp_path / "in_process.jsonl"))
    assert again.scanned_count == 0 and again.clips == in_process.clips


@pytest.mark.slow
def test_a_table_inside_the_folder_is_not_read_as_captions(messy, tmp_path):
    for path in find_videos(messy)[:4]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    flags = ("--input_dir", tmp_path, "--output_tsv", tmp_path / "clips.tsv", "--seconds", 1)
    split_command(*flags)
    before = (tmp_path / "clips.tsv").read_bytes()
    split_command(*flags)
    assert (tmp_path / "clips.tsv").read_bytes() == before
    assert "clips" not in (tmp_path / "clips.left_out.tsv").read_text()


@pytest.mark.slow
def test_only_changed_files_are_scanned_again(messy, tmp_path):
    store = tmp_path / "scans.jsonl"
    settings = SplitSettings(SETTINGS)
    whole = split_folder(messy, settings, ScanStore(store))
    lines = store.read_bytes().splitlines(keepends=True)
    store.write_bytes(b"".join(lines[:5]) + lines[5][:30])  # killed while the sixth line was written
    again = split_folder(messy, settings, ScanStore(store))
    assert again.scanned_count == whole.file_count - 5
    assert (again.clips, again.left_out) == (whole.clips, whole.left_out)
    assert split_folder(messy, settings, ScanStore(store)).scanned_count == 0
    assert (
        split_folder(messy, SplitSettings(ScanSettings(1.0, 0.25)), ScanStore(store)).scanned_count == whole.file_count
    )


@pytest.mark.slow
def test_no_usable_video_is_one_error_after_the_reasons(tmp_path, capsys):
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
    write_tone_video(videos / "short.mp4", 1)
    with pytest.raises(DataError, match="none of its 1 files can be used"):
        split_command(*flags)
    assert "found 1 files = 0 used + 1 left out" in capsys.readouterr().out
    assert not (tmp_path / "clips.tsv").exists()


@pytest.mark.slow
def test_a_window_whose_audio_ends_early_is_left_out(tmp_path):
    write_video(tmp_path / "a.mp4", grey_frames(75), 25, tone(1.2), RATE)
    write_tone_video(tmp_path / "b.mp4", 3)
    write_tone_video(tmp_path / "c.mp4", 3)
    result = split_folder(tmp_path, SplitSettings(ScanSettings(1.0, 1.0)), ScanStore(tmp_path / "scans.jsonl"))
    assert [row.reason.split(":")[0] for row in result.unused_windows] == ["sound missing"] * 2
    assert [row.start for row in result.unused_windows] == [1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize(("normalize", "gain_db"), [("video", 13.5), ("window", None), ("none", 0.0)])
def test_all_clips_of_a_video_have_one_gain(tmp_path, normalize, gain_db):
    sound = np.concatenate([tone(3, amplitude=0.2), tone(1, amplitude=0.004)])
    write_video(tmp_path / "videos" / "a.mp4", grey_frames(100), 25, sound, RATE)
    store = ScanStore(tmp_path / "scans.jsonl")
    settings = SplitSettings(SETTINGS, val_ratio=0.2, test_ratio=0.2, normalize=normalize)
    clips = split_folder(tmp_path / "videos", settings, store).clips
    assert len(clips) > 3 and len({clip.gain_db for clip in clips}) == 1
    assert clips[0].gain_db == (None if gain_db is None else pytest.approx(gain_db, abs=0.5))
    write_clips(tmp_path / "clips.tsv", clips)
    assert read_clips(tmp_path / "clips.tsv") == clips


def test_invalid_settings_are_refused():
    with pytest.raises(ConfigError, match=r"split\.normalize=loud: video, window, none are known"):
        SplitSettings(SETTINGS, normalize="loud")
    for wrong in ({"val_ratio": -0.1}, {"val_ratio": 0.5, "test_ratio": 0.5}):
        with pytest.raises(ConfigError, match="together below 1"):
            SplitSettings(**wrong)
    with pytest.raises(ConfigError, match=r"at least 0\.64 s"):
        ScanSettings(seconds=0.5)
    with pytest.raises(ConfigError, match="stride"):
        ScanSettings(stride=0)


@pytest.mark.slow
def test_odd_names_links_and_folders(tmp_path):
    """Odd names are used; a link to a folder is followed once; what cannot be read is named and harms nothing else."""
    root, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    content = write_tone_video(tmp_path / "a.mp4", 2).read_bytes()
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
    assert result.file_count == 7


@pytest.mark.slow
def test_control_characters_in_names_are_escaped_in_lines_and_tables(tmp_path, capsys):
    videos, table = tmp_path / "videos", tmp_path / "clips.tsv"
    content = write_tone_video(tmp_path / "a.mp4", 4).read_bytes()
    names = ("n\nerror: all is lost.mp4", "\x1b[2J\u202e.mp4", "junk\r\x9b.mp4")
    videos.mkdir()
    for name in names:
        (videos / name).write_bytes(b"junk" if "junk" in name else content)
    assert split_command("--input_dir", videos, "--output_tsv", table, "--seconds", 1, "--stride", 1) == 0
    lines = capsys.readouterr().out.split("\n")
    assert all(line.isprintable() for line in lines)
    assert r"  left out: junk\r\x9b.mp4: no video" in lines
    assert {clip.video for clip in read_clips(table)} == set(names[:2])
    assert [row.video for row in read_left_out(left_out_path(table)) if row.start is None] == [names[2]]
    for path in (table, left_out_path(table)):
        assert path.read_text().replace("\t", "").replace("\n", "").isprintable()
    assert table.read_text().count("\n") == 1 + len(read_clips(table))


@pytest.mark.slow
def test_a_caption_that_is_not_utf8_is_named_and_a_table_that_fits_nothing_is_an_error(tmp_path, capsys):
    write_tone_video(tmp_path / "videos" / "a.mp4", 4)
    (tmp_path / "videos" / "a.TXT").write_bytes(b"caf\xe9")
    flags = ("--input_dir", tmp_path / "videos", "--output_tsv", tmp_path / "clips.tsv", "--seconds", 1, "--stride", 1)
    assert split_command(*flags) == 0
    assert "note: a.TXT: not used as a caption: no UTF-8 text; save it as UTF-8" in capsys.readouterr().out
    assert {clip.caption for clip in read_clips(tmp_path / "clips.tsv")} == {""}
    (tmp_path / "words.tsv").write_text("path\tcaption\nC:\\clips\\b.mp4\ta bell\n")
    with pytest.raises(DataError, match=r"words\.tsv: none of its 1 rows .* C:/clips/b\.mp4, a video is a\.mp4"):
        split_command(*flags, "--captions", tmp_path / "words.tsv")
    (tmp_path / "words.tsv").write_text("path\tcaption\nC:\\clips\\a.mp4\ta bell\n")
    assert split_command(*flags, "--captions", tmp_path / "words.tsv") == 0
    assert {clip.caption for clip in read_clips(tmp_path / "clips.tsv")} == {"a bell"}


@pytest.mark.slow
def test_the_terminal_names_the_table_of_what_is_left_out_with_examples(tmp_path, capsys):
    sound = np.concatenate([tone(3), np.zeros(4 * RATE, np.float32)])
    write_video(tmp_path / "videos" / "a.mp4", grey_frames(175), 25, sound, RATE)
    table = tmp_path / "clips.tsv"
    assert split_command("--input_dir", tmp_path / "videos", "--output_tsv", table, "--seconds", 1, "--stride", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    examples = [line for line in lines if "x " in line and ", as a.mp4 from " in line]
    assert len(examples) == 2
    assert examples[0].startswith("  left out: 3 x silent, as a.mp4 from 4 s (silent: peak -1")
    assert f"  all that is left out, with the reasons: {left_out_path(table)}" in lines


@pytest.mark.slow
def test_videos_in_sub_folders_are_reported_and_results_are_not_videos(tmp_path, capsys):
    """A report's films hold generated sounds and held-out pictures: they never become training clips."""
    content = write_tone_video(tmp_path / "a.mp4", 8).read_bytes()
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
    output = capsys.readouterr().out
    assert "found 3 files = 3 used" in output
    assert "sub-folders" not in output
    assert "captions: 0 of " in output
    assert "note: 2024/c.mp4 is the same file as 2024/b.mp4; take one away" in output


def test_an_unwritable_folder_is_one_line(messy, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(MMAudioError, match=r"file/clips\.scans\.jsonl: cannot be written \(.*\); make room there"):
        split_command("--input_dir", messy, "--output_tsv", tmp_path / "file" / "clips.tsv", "--seconds", 1)
