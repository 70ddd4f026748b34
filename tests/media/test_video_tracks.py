"""Files with several video streams: which one is used, and the note."""

from __future__ import annotations

import pytest
import torch
from helpers import split_command
from timed_videos import read_number, several

from mmaudio.data.clip_table import left_out_path, read_clips, read_left_out
from mmaudio.data.scan import ScanSettings, scan_video
from mmaudio.errors import ConfigError, DataError
from mmaudio.generation.generate import GenerationRequest
from mmaudio.generation.jobs import plan_job, write_outputs
from mmaudio.media.frame_windows import FrameGrid, read_frame_windows
from mmaudio.media.streams import DEFAULT_STREAMS, StreamChoice
from mmaudio.media.video import probe
from mmaudio.report.clip_media import write_videos


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize(
    ("lengths", "default", "used"),
    [([1, 30], 1, 1), ([1, 30], None, 1), ([30, 30], 1, 1), ([30, 30], 0, 0), ([15, 30], None, 1), ([1, 30], 0, 1)],
)
def test_of_several_pictures_the_default_one_is_used_or_the_longest_that_moves(
    tmp_path, suffix, lengths, default, used
):
    if suffix == ".mp4" and default is None:
        used = 0 if lengths[0] > 1 else used  # where none is named, MP4's first one is flagged
    path = several(tmp_path / f"a{suffix}", lengths, default)
    info = probe(path)
    assert (info.video_track, info.video_track_count) == (used, 2)
    scan = scan_video(path, ScanSettings(seconds=1.0, stride=1.0))
    assert len(scan.windows) == lengths[used] // 10
    assert scan.note == f"2 pictures: number {used} is used (--video-track)"


def first_number(path, streams=DEFAULT_STREAMS):
    """The number in the first picture of a file."""
    window = next(read_frame_windows(probe(path, streams), [0.0], [FrameGrid(10, 1, read_number)]))
    return int(window.frames[0][0])


def test_another_picture_is_read_where_it_is_asked_for(tmp_path):
    path = several(tmp_path / "a.mkv", [30, 20], 0)
    assert first_number(path) == 0
    assert [first_number(path, StreamChoice(video_track=number)) for number in (0, 1)] == [0, 100]
    with pytest.raises(DataError, match=r"a\.mkv: no picture number 2: it has 2, counted from 0"):
        probe(path, StreamChoice(video_track=2))


@pytest.mark.slow
def test_splitting_keeps_the_choice_in_the_table_and_leaves_out_files_without_it(tmp_path):
    videos, table = tmp_path / "videos", tmp_path / "clips.tsv"
    videos.mkdir()
    several(videos / "two.mkv", [30, 20], 0)
    several(videos / "one.mkv", [30])
    split_command(*("--input_dir", videos, "--output_tsv", table, "--seconds", 1, "--stride", 1, "split.rules={}"))
    assert {(clip.video, clip.video_track) for clip in read_clips(table)} == {("one.mkv", None), ("two.mkv", 0)}
    split_command(*("--input_dir", videos, "--output_tsv", table, "--seconds", 1, "--stride", 1, "--video-track", 1))
    clips = read_clips(table)
    assert [(clip.video, clip.start, clip.video_track) for clip in clips] == [("two.mkv", 0.0, 1), ("two.mkv", 1.0, 1)]
    assert {clip.notes for clip in clips} == {"2 pictures: number 1 is used (--video-track)"}
    (row,) = read_left_out(left_out_path(table))
    assert (row.video, row.reason) == ("one.mkv", "no picture number 1: it has 1, counted from 0")
    write_videos(videos, clips[:1], [torch.zeros(16_000)], 16_000, [tmp_path / "report.mp4"])
    assert first_number(tmp_path / "report.mp4") == 100, "the report shows the picture that was used"
    with pytest.raises(ConfigError, match="--video-track -1"):
        split_command("--input_dir", videos, "--output_tsv", table, "--video-track", -1)


def test_generation_follows_and_copies_the_chosen_picture(tmp_path):
    video = several(tmp_path / "a.mkv", [30, 20], 0)
    job = plan_job(GenerationRequest(video, video_track=1), tmp_path / "sound", 1)
    assert job.clip_range.seconds == 2.0
    assert job.notes() == ["a.mkv: 2 pictures: number 1 is used (--video-track)"]
    write_outputs(job, torch.zeros(1, 32_000), 16_000, {})
    assert first_number(tmp_path / "sound" / "a.mkv") == 100
    with pytest.raises(DataError, match="no picture number 2"):
        plan_job(GenerationRequest(video, video_track=2), tmp_path / "sound", 1)
