"""The plan of an extraction: missing, stale and damaged shards, renamed videos, several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from extraction_inputs import MODEL, clip_row, extraction_command, run_extraction, shard_contents, shard_files
from safetensors.torch import load_file
from video_files import put_nan, random_encoders, write_tone_video

from mmaudio.data.clip_table import read_clips, write_clips
from mmaudio.data.feature_store import open_features, read_header, shard_path
from mmaudio.errors import DataError
from mmaudio.features.extraction_plan import plan_extraction
from mmaudio.utils.locks import FileLocks


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_encoders(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, weights):
    """Three videos with features, to be copied."""
    folder = tmp_path_factory.mktemp("extracted")
    for name, fps in (("a.mp4", 24), ("b.mp4", 25), ("c.mp4", 30)):
        write_tone_video(folder / name, 2, fps)
    write_clips(
        folder / "clips.tsv",
        [clip_row("a.mp4", 0.0), clip_row("a.mp4", 0.5), clip_row("b.mp4", 0.0), clip_row("c.mp4", 0.0)],
    )
    run_extraction(folder, weights)
    return folder


@pytest.fixture
def folder(extracted, tmp_path):
    shutil.copytree(extracted, tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.slow
def test_check_values_finds_damaged_shards_and_writes_them_again(folder, weights):
    before = shard_contents(folder)
    put_nan(shard_path(folder / "features", "a.mp4"), "sync_features", 1)
    shard_path(folder / "features", "b.mp4").unlink()
    clips = read_clips(folder / "clips.tsv")
    write_clips(folder / "clips.tsv", [*clips[:3], replace(clips[3], caption="other words")])
    assert run_extraction(folder, weights, check_values=False).extracted == 1  # nothing looks inside unasked
    shard_path(folder / "features", "b.mp4").write_bytes(b"no shard")

    plans = []
    report = run_extraction(folder, weights, check_values=True, on_plan=plans.extend)
    assert {plan.header.video: plan.reason for plan in plans} == {
        "a.mp4": "not finite: sync_features of clip a_0.5",
        "b.mp4": "unreadable, or of another version",
    }
    assert (report.extracted, report.valid, report.clips) == (2, 1, 4)
    write_clips(folder / "clips.tsv", clips)
    assert run_extraction(folder, weights, check_values=True).text_only == 1
    assert shard_contents(folder) == before
    plans = []
    assert run_extraction(folder, weights, check_values=True, on_plan=plans.extend).valid == 3
    assert plans == []


@pytest.mark.slow
def test_a_damaged_shard_is_not_copied(folder, weights):
    shard = shard_path(folder / "features", "a.mp4")
    before, content = load_file(shard)["mean"].clone(), bytearray(shard.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1
    shard.write_bytes(content)
    clips, plans = read_clips(folder / "clips.tsv"), []
    write_clips(folder / "clips.tsv", [replace(clip, caption="other words") for clip in clips])
    report = run_extraction(folder, weights, on_plan=plans.extend)
    assert (report.extracted, report.text_only) == (1, 2)
    reasons = {plan.header.video: plan.reason for plan in plans}
    assert reasons["a.mp4"].startswith("damaged: the checksum of mean of clip a_0.0 is wrong")
    assert torch.equal(load_file(shard)["mean"], before)


@pytest.mark.slow
def test_reasons_of_stale_shards(folder, weights, tmp_path):
    def stale_reasons(folder_of_weights=weights):
        plans = []
        run_extraction(folder, folder_of_weights, on_plan=plans.extend)
        return {plan.header.video: plan.reason for plan in plans}

    write_tone_video(folder / "a.mp4", 2.5, 24)
    clips = read_clips(folder / "clips.tsv")
    write_clips(folder / "clips.tsv", [*clips[:3], replace(clips[3], start=0.25, end=1.25)])
    assert stale_reasons() == {"a.mp4": "stale: the video changed", "c.mp4": "stale: other clips"}
    assert stale_reasons() == {}
    other = random_encoders(tmp_path / "other")
    (other / "vae.safetensors").write_bytes((other / "vae.safetensors").read_bytes()[:-4] + b"\0\0\0\0")
    assert set(stale_reasons(other).values()) == {"stale: other encoders"}


@pytest.mark.slow
def test_exact_dtype_makes_features_of_another_dtype_stale(folder, weights):
    plans = []
    assert run_extraction(folder, weights, dtype=torch.bfloat16).valid == 3  # either will do
    before = load_file(shard_path(folder / "features", "a.mp4"))
    report = run_extraction(folder, weights, dtype=torch.bfloat16, exact_dtype=True, on_plan=plans.extend)
    assert (report.extracted, {plan.reason for plan in plans}) == (3, {"stale: computed in float32"})
    after = load_file(shard_path(folder / "features", "a.mp4"))
    assert read_header(shard_path(folder / "features", "a.mp4")).precision == "bfloat16"
    assert torch.equal(before["mean"], after["mean"])
    assert not torch.equal(before["sync_features"], after["sync_features"])
    torch.testing.assert_close(before["clip_features"], after["clip_features"], atol=0.02, rtol=0)
    assert run_extraction(folder, weights, dtype=torch.bfloat16, exact_dtype=True).valid == 3


def test_a_renamed_video_reuses_its_features(folder, weights):
    old = load_file(shard_path(folder / "features", "a.mp4"))
    (folder / "a.mp4").rename(folder / "z.mp4")
    clips = read_clips(folder / "clips.tsv")
    renamed = [replace(clip, id=f"z{clip.start}", video="z.mp4", caption="a whistle") for clip in clips[:2]]
    write_clips(folder / "clips.tsv", renamed + clips[2:])
    report = run_extraction(folder, weights)
    assert (report.extracted, report.text_only, report.valid) == (0, 1, 2)
    header = read_header(shard_path(folder / "features", "z.mp4"))
    assert (header.video, header.clip_ids, header.captions) == ("z.mp4", ["z0.0", "z0.5"], ["a whistle"] * 2)
    new = load_file(shard_path(folder / "features", "z.mp4"))
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["text_features"]


@pytest.mark.slow
def test_videos_that_change_names_keep_their_features_apart(folder, weights):
    """A shard with reusable features may be overwritten first."""
    old = {name: load_file(shard_path(folder / "features", name)) for name in ("b.mp4", "c.mp4")}
    for before, after in (("b.mp4", "away"), ("c.mp4", "b.mp4"), ("away", "c.mp4")):
        (folder / before).rename(folder / after)
    run_extraction(folder, weights)
    for before, after in (("b.mp4", "c.mp4"), ("c.mp4", "b.mp4")):
        assert torch.equal(
            load_file(shard_path(folder / "features", after))["sync_features"], old[before]["sync_features"]
        )
    assert run_extraction(folder, weights).valid == 3


@pytest.mark.parametrize(
    "change",
    [{"start": 0.25, "end": 1.25}, {"track": 1}, {"gain_db": 3.0}, {"video_track": 0}, {"channel": 1}],
)
def test_features_of_another_window_stream_or_gain_are_stale(folder, change):
    clips = read_clips(folder / "clips.tsv")
    assert len(open_features(folder / "clips.tsv", folder / "features", "train", MODEL)) == 4
    write_clips(folder / "clips.tsv", [*clips[:3], replace(clips[3], **change)])
    with pytest.raises(DataError, match="made from another table of clips; extract again"):
        open_features(folder / "clips.tsv", folder / "features", "train", MODEL)


@pytest.mark.parametrize("change", [{"video_track": 0}, {"channel": 1}])
def test_another_picture_or_channel_is_extracted_anew_and_notes_are_not(folder, weights, change):
    clips = [replace(clip, notes="a note") for clip in read_clips(folder / "clips.tsv")]
    plans = plan_extraction([*clips[:3], replace(clips[3], **change)], folder, folder / "features", MODEL, weights)
    assert {plan.header.video: plan.reason for plan in plans} == {
        "a.mp4": "",
        "b.mp4": "",
        "c.mp4": "stale: other clips",
    }


def test_one_video_has_one_audio_track(folder, weights):
    clips = read_clips(folder / "clips.tsv")
    write_clips(folder / "clips.tsv", [clips[0], replace(clips[1], track=1), *clips[2:]])
    with pytest.raises(DataError, match=r"a\.mp4: the table names several tracks"):
        run_extraction(folder, weights)


@pytest.mark.slow
def test_a_video_that_is_removed_during_extraction_is_tried_again(folder, weights):
    for path in shard_files(folder):
        path.unlink()

    def remove_video(plans):
        (folder / "b.mp4").rename(folder / "away")
        yield from plans

    assert [row.reason for row in run_extraction(folder, weights, progress=remove_video).left_out] == [
        "not there any more"
    ]
    (folder / "away").rename(folder / "b.mp4")
    report = run_extraction(folder, weights)
    assert (report.valid, report.extracted, report.left_out) == (2, 1, [])


@pytest.mark.slow
def test_a_video_that_comes_back_is_tried_again(folder, weights):
    shard_path(folder / "features", "a.mp4").unlink()
    (folder / "a.mp4").rename(folder / "away")
    assert [row.reason for row in run_extraction(folder, weights).left_out] == ["not there any more"]
    (folder / "away").rename(folder / "a.mp4")
    assert run_extraction(folder, weights).left_out == []


@pytest.mark.slow
def test_shards_that_another_process_writes_meanwhile_are_not_written_again(folder, weights):
    for path in shard_files(folder):
        path.unlink()

    def run_in_between(plans):
        """Another whole run between the plan and the first video."""
        run_extraction(folder, weights)
        yield from plans

    report = run_extraction(folder, weights, progress=run_in_between)
    assert (report.extracted, report.by_other_processes, report.clips) == (0, 3, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "world_size"), [("1", "2"), ("0", "1")], ids=["torchrun", "two runs"])
def test_two_processes_on_one_folder_share_the_work(folder, weights, rank, world_size):
    """As torchrun starts them, and started twice by accident: every shard is whole and no video is done twice.

    One is this process, which begins amid the work of the other.
    """
    for path in shard_files(folder):
        path.unlink()
    clips = read_clips(folder / "clips.tsv")
    extra = []
    for number in range(4):
        write_tone_video(folder / f"e{number}.mp4", 2)
        extra += [replace(clips[0], id=f"e{number}", video=f"e{number}.mp4")]
    write_clips(folder / "clips.tsv", clips + extra)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": rank, "WORLD_SIZE": world_size}
    command = extraction_command(folder, weights)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None and not shard_files(folder):
            time.sleep(0.01)
        here = run_extraction(folder, weights)
        output = process.communicate()[0]
    assert process.returncode == 0, output
    extracted = int(output.split(" videos = ")[1].split()[0])
    assert 1 <= extracted <= 7 and extracted + here.extracted == 7, output
    assert here.valid + here.extracted + here.by_other_processes == 7
    assert (here.clips, here.left_out) == (8, []) and "features of 8 clips, 0 videos left out" in output
    together = shard_contents(folder)
    assert len(together) == 7
    report = run_extraction(folder, weights, check_values=True)
    assert (report.valid, report.extracted) == (7, 0)


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_released(folder, weights):
    for path in shard_files(folder):
        path.unlink()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
import pathlib, time
from mmaudio.features.extraction_plan import plan_extraction
from mmaudio.utils.locks import FileLocks
locks = FileLocks(pathlib.Path({str(folder / "features")!r}))
locks.acquire({shard_path(folder / "features", "a.mp4").name!r})
print("holds", flush=True)
time.sleep(600)
""",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "holds\n"
    videos = []

    def watch(plans):
        for plan in plans:
            videos.append(plan.header.video)
            yield plan
        with FileLocks(folder / "other"):
            holder.kill()
            holder.communicate()

    report = run_extraction(folder, weights, progress=watch)
    assert (videos[0], report.extracted) == ("a.mp4", 3)
