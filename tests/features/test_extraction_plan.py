"""What extraction finds to do: stale, missing and damaged shards by name, renamed videos, work shared by processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from media import make_video, poison, random_encoders
from safetensors.torch import load_file
from test_extraction import MODEL, SCRIPT, clip, contents, run, shards

from mmaudio.data.clips import read_clips, write_clips
from mmaudio.data.feature_store import open_features, read_header, shard_path
from mmaudio.errors import DataError
from mmaudio.utils.locks import Claims


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_encoders(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory, weights):
    """Three videos with features, to be copied."""
    folder = tmp_path_factory.mktemp("extracted")
    for name, fps in (("a.mp4", 24), ("b.mp4", 25), ("c.mp4", 30)):
        make_video(folder / name, 2, fps)
    write_clips(folder / "clips.tsv", [clip("a.mp4", 0.0), clip("a.mp4", 0.5), clip("b.mp4", 0.0), clip("c.mp4", 0.0)])
    run(folder, weights)
    return folder


@pytest.fixture
def folder(extracted, tmp_path):
    shutil.copytree(extracted, tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.slow
def test_verify_lists_and_mends_what_is_wrong(folder, weights):
    before = contents(folder)
    poison(shard_path(folder / "features", "a.mp4"), "sync_features", 1)
    shard_path(folder / "features", "b.mp4").unlink()
    clips = read_clips(folder / "clips.tsv")
    write_clips(folder / "clips.tsv", [*clips[:3], replace(clips[3], caption="other words")])
    assert run(folder, weights, verify=False).made == 1  # nothing looks inside unasked
    shard_path(folder / "features", "b.mp4").write_bytes(b"no shard")

    listed = []
    report = run(folder, weights, verify=True, found=listed.extend)
    assert {job.wanted.video: job.why for job in listed} == {
        "a.mp4": "not finite: sync_features of clip a_0.5",
        "b.mp4": "unreadable, or of another version",
    }
    assert (report.made, report.valid, report.clips) == (2, 1, 4)
    write_clips(folder / "clips.tsv", clips)
    assert run(folder, weights, verify=True).texts == 1
    assert contents(folder) == before
    listed = []
    assert run(folder, weights, verify=True, found=listed.extend).valid == 3
    assert listed == []


def test_why_a_shard_is_stale_is_said(folder, weights, tmp_path):
    def why(chosen=weights, **how):
        listed = []
        run(folder, chosen, found=listed.extend, **how)
        return {job.wanted.video: job.why for job in listed}

    make_video(folder / "a.mp4", 2.5, 24)
    clips = read_clips(folder / "clips.tsv")
    write_clips(folder / "clips.tsv", [*clips[:3], replace(clips[3], start=0.25, end=1.25)])
    assert why() == {"a.mp4": "stale: the video changed", "c.mp4": "stale: other clips"}
    assert why() == {}
    other = random_encoders(tmp_path / "other")
    (other / "vae.safetensors").write_bytes((other / "vae.safetensors").read_bytes()[:-4] + b"\0\0\0\0")
    assert set(why(other).values()) == {"stale: other encoders"}


def test_precision_asked_for_is_what_is_there(folder, weights):
    listed = []
    assert run(folder, weights, dtype=torch.bfloat16).valid == 3  # either will do
    before = load_file(shard_path(folder / "features", "a.mp4"))
    report = run(folder, weights, dtype=torch.bfloat16, exact=True, found=listed.extend)
    assert (report.made, {job.why for job in listed}) == (3, {"stale: computed in float32"})
    after = load_file(shard_path(folder / "features", "a.mp4"))
    assert read_header(shard_path(folder / "features", "a.mp4")).precision == "bfloat16"
    assert torch.equal(before["mean"], after["mean"])
    assert not torch.equal(before["sync_features"], after["sync_features"])
    torch.testing.assert_close(before["clip_features"], after["clip_features"], atol=0.02, rtol=0)
    assert run(folder, weights, dtype=torch.bfloat16, exact=True).valid == 3


def test_a_renamed_video_takes_the_features_that_are_there(folder, weights):
    old = load_file(shard_path(folder / "features", "a.mp4"))
    (folder / "a.mp4").rename(folder / "z.mp4")
    clips = read_clips(folder / "clips.tsv")
    renamed = [replace(clip, id=f"z{clip.start}", video="z.mp4", caption="a whistle") for clip in clips[:2]]
    write_clips(folder / "clips.tsv", renamed + clips[2:])
    report = run(folder, weights)
    assert (report.made, report.texts, report.valid) == (0, 1, 2)
    header = read_header(shard_path(folder / "features", "z.mp4"))
    assert (header.video, header.clip_ids, header.captions) == ("z.mp4", ["z0.0", "z0.5"], ["a whistle"] * 2)
    new = load_file(shard_path(folder / "features", "z.mp4"))
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["text_features"]


def test_videos_that_change_names_keep_their_features_apart(folder, weights):
    """What one video would take from another's shard may be overwritten before its turn."""
    old = {name: load_file(shard_path(folder / "features", name)) for name in ("b.mp4", "c.mp4")}
    for before, after in (("b.mp4", "kept"), ("c.mp4", "b.mp4"), ("kept", "c.mp4")):
        (folder / before).rename(folder / after)
    run(folder, weights)
    for before, after in (("b.mp4", "c.mp4"), ("c.mp4", "b.mp4")):
        assert torch.equal(
            load_file(shard_path(folder / "features", after))["sync_features"], old[before]["sync_features"]
        )
    assert run(folder, weights).valid == 3


@pytest.mark.parametrize("change", [{"start": 0.25, "end": 1.25}, {"track": 1}], ids=["window", "sound track"])
def test_features_of_another_window_or_sound_track_are_stale(folder, change):
    clips = read_clips(folder / "clips.tsv")
    assert len(open_features(folder / "clips.tsv", folder / "features", "train", MODEL)) == 4
    write_clips(folder / "clips.tsv", [*clips[:3], replace(clips[3], **change)])
    with pytest.raises(DataError, match="made from another table of clips; extract again"):
        open_features(folder / "clips.tsv", folder / "features", "train", MODEL)


def test_one_video_has_one_sound_track(folder, weights):
    clips = read_clips(folder / "clips.tsv")
    write_clips(folder / "clips.tsv", [clips[0], replace(clips[1], track=1), *clips[2:]])
    with pytest.raises(DataError, match=r"a\.mp4: the table names several sound tracks"):
        run(folder, weights)


def test_a_video_that_went_away_in_the_midst_is_looked_at_again(folder, weights):
    for path in shards(folder):
        path.unlink()

    def unplugged(jobs):
        (folder / "b.mp4").rename(folder / "away")
        yield from jobs

    assert [row.reason for row in run(folder, weights, progress=unplugged).left_out] == ["not there any more"]
    (folder / "away").rename(folder / "b.mp4")
    report = run(folder, weights)
    assert (report.valid, report.made, report.left_out) == (2, 1, [])


def test_a_video_that_comes_back_is_looked_at_again(folder, weights):
    shard_path(folder / "features", "a.mp4").unlink()
    (folder / "a.mp4").rename(folder / "away")
    assert [row.reason for row in run(folder, weights).left_out] == ["not there any more"]
    (folder / "away").rename(folder / "a.mp4")
    assert run(folder, weights).left_out == []


def test_what_another_process_makes_meanwhile_is_not_made_again(folder, weights):
    for path in shards(folder):
        path.unlink()

    def other(jobs):
        """Between two videos a whole other run goes by."""
        yield jobs[0]
        run(folder, weights)
        yield from jobs[1:]

    report = run(folder, weights, progress=other)
    assert (report.made, report.others, report.clips) == (1, 2, 4)


def command(folder, weights):
    return [
        sys.executable,
        str(SCRIPT),
        "--input_tsv",
        str(folder / "clips.tsv"),
        "--video_root",
        str(folder),
        "--output_dir",
        str(folder / "features"),
        "--model",
        MODEL,
        "--weights",
        str(weights),
        "--device",
        "cpu",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [["0", "1"], ["0", "0"]], ids=["torchrun", "two runs"])
def test_two_processes_on_one_folder_share_the_work(folder, weights, ranks):
    """As torchrun starts them, and started twice by accident: every shard is whole and no video is done twice."""
    for path in shards(folder):
        path.unlink()
    clips = read_clips(folder / "clips.tsv")
    extra = []
    for number in range(4):
        make_video(folder / f"e{number}.mp4", 2)
        extra += [replace(clips[0], id=f"e{number}", video=f"e{number}.mp4")]
    write_clips(folder / "clips.tsv", clips + extra)
    processes = [
        subprocess.Popen(
            command(folder, weights),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RANK": rank, "WORLD_SIZE": str(len(set(ranks)))},
        )
        for rank in ranks
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    made = [int(output.split(" videos = ")[1].split()[0]) for output in outputs]
    assert sum(made) == 7, outputs
    assert all("features of 8 clips, 0 videos left out" in output for output in outputs)
    together = contents(folder)
    assert len(together) == 7
    report = run(folder, weights, verify=True)
    assert (report.valid, report.made) == (7, 0)


def test_a_claim_of_a_killed_process_holds_nothing_up(folder, weights):
    for path in shards(folder):
        path.unlink()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
import pathlib, time
from mmaudio.utils.locks import Claims
claims = Claims(pathlib.Path({str(folder / "features")!r}))
claims.take({shard_path(folder / "features", "a.mp4").name!r})
print("holds", flush=True)
time.sleep(600)
""",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "holds\n"
    seen = []

    def watched(jobs):
        for job in jobs:
            seen.append(job.wanted.video)
            yield job
        with Claims(folder / "other"):
            holder.kill()

    report = run(folder, weights, progress=watched)
    assert (seen[0], report.made) == ("a.mp4", 3)
