"""Awkward files: each is used or left out for the right reason, the counts add up, nothing is left open."""

from __future__ import annotations

import gc
from collections import Counter
from itertools import pairwise

import psutil
import pytest
from helpers import split_command
from video_corpus import LEFT_OUT, USED, make_corpus

from mmaudio.data.clip_table import left_out_path, read_clips, read_left_out
from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.media.video import probe


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The folder, written once."""
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def split_table(corpus, tmp_path_factory):
    """The table that the command wrote, and the page."""
    table = tmp_path_factory.mktemp("split") / "clips.tsv"
    assert split_command("--input_dir", corpus, "--output_tsv", table, "--recursive", "--report") == 0
    return table


@pytest.mark.slow
def test_every_file_is_used_or_left_out_with_the_right_reason(split_table):
    clips = read_clips(split_table)
    rows = read_left_out(left_out_path(split_table))
    whole_files = {row.video: row.reason for row in rows if row.start is None}
    assert len(USED) + len(LEFT_OUT) >= 40
    wrong = {name: whole_files[name] for name in USED if name in whole_files}
    wrong |= {
        name: whole_files.get(name) for name, (reason, _) in LEFT_OUT.items() if reason not in whole_files.get(name, "")
    }
    assert not wrong
    assert {clip.video for clip in clips} == set(USED)
    assert len(USED) + len(LEFT_OUT) == len({clip.video for clip in clips}) + len(whole_files)


@pytest.mark.slow
def test_the_page_shows_every_file(split_table):
    page = split_table.with_suffix(".report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") >= len(USED)
    assert page.count("<path d=") >= len(USED)
    for name, (reason, _) in LEFT_OUT.items():
        assert name in page and reason.split(":")[0] in page
    assert "it&#39;s &#34;quoted&#34; &amp; spaced.mkv" in page


@pytest.mark.slow
def test_no_window_spans_a_gap(split_table):
    for clip in read_clips(split_table):
        if clip.video.startswith("gap"):
            assert clip.start == pytest.approx(5.0, abs=0.01)
    rows = [row for row in read_left_out(left_out_path(split_table)) if row.video.startswith("gap, then")]
    assert Counter(row.reason.split(":")[0] for row in rows) == {"too short": 2}


@pytest.mark.slow
def test_scanning_again_leaks_no_file_and_no_memory(corpus):
    files = [corpus / name for name in (*USED, *LEFT_OUT)]
    process = psutil.Process()

    def scan_all():
        for path in files:
            scan_video(path, ScanSettings())
        gc.collect()
        return process.num_fds(), process.memory_info().rss

    scan_all()
    files_open, memory = zip(*(scan_all() for _ in range(3)), strict=True)
    assert min(b - a for a, b in pairwise(files_open)) <= 0
    assert min(b - a for a, b in pairwise(memory)) < 20e6, "a leak grows with every scan; other growth does not"


@pytest.mark.slow
def test_properties_of_the_files(corpus):
    assert probe(corpus / "turned.mp4").rotation in (90, 270)
    assert probe(corpus / "starts at 5 s.ts").start_time > 4
    assert probe(corpus / "seven and one.webm").audio_channels == 8
    assert probe(corpus / "192 kHz.mkv").audio_sample_rate == 192_000
    assert [track.language for track in probe(corpus / "two tracks.mkv").audio_tracks] == ["eng", "deu"]
    assert probe(corpus / "interlaced.mpg").interlaced and probe(corpus / "interlaced.mp4").interlaced
