"""Shards in work: the same bytes for any number of readers, as one video alone; what is shared out among them."""

import threading
from dataclasses import replace

import pytest
import torch
from extraction_inputs import MODEL, clip_row, shard_contents
from video_files import random_encoders, write_tone_video

from mmaudio.data.feature_store import read_header
from mmaudio.features import shard_jobs
from mmaudio.features.encoders import load_encoders
from mmaudio.features.extraction_plan import plan_extraction
from mmaudio.features.shard_jobs import EXTRACTED, share_cores, write_shards
from mmaudio.utils.locks import FileLocks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_encoders(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, seconds in (("a.mp4", 3.2), ("b.mp4", 2.2), ("c.mp4", 1.2), ("d.mp4", 1.2)):
        write_tone_video(folder / name, seconds)
    (folder / "c.mp4").write_bytes((folder / "c.mp4").read_bytes()[:2000])
    return folder


def write(videos, out, encoders, weights, readers):
    """Write the shards of all videos; what was done by video."""
    starts = {"a.mp4": (0.0, 0.5, 1.0, 2.0), "b.mp4": (0.0, 1.0), "c.mp4": (0.0,), "d.mp4": (0.1,)}
    clips = [clip_row(video, start, f"at {start}") for video in starts for start in starts[video]]
    plans = plan_extraction(clips, videos, out / "features", MODEL, weights)
    with FileLocks(out / "features") as locks:
        return {plan.header.video: result for plan, result in write_shards(plans, encoders, locks, readers)}


@pytest.mark.slow
def test_shards_are_the_same_for_any_number_of_readers(videos, weights, tmp_path):
    encoders = load_encoders(MODEL, weights)
    assert write(videos, tmp_path / "one", encoders, weights, 1) == dict.fromkeys(
        ("a.mp4", "b.mp4", "c.mp4", "d.mp4"), EXTRACTED
    )
    expected = shard_contents(tmp_path / "one")
    headers = [read_header(path) for path in (tmp_path / "one" / "features").glob("*.safetensors")]
    assert {header.video for header in headers if header.left_out} == {"c.mp4"}
    for readers in (2, 4):
        out = tmp_path / str(readers)
        write(videos, out, encoders, weights, readers)
        assert shard_contents(out) == expected


@pytest.mark.slow
def test_values_that_are_not_finite_leave_their_video_out_alone(videos, weights, tmp_path):
    encoders, threads_before = load_encoders(MODEL, weights), threading.enumerate()
    write(videos, tmp_path / "sound", encoders, weights, 1)
    with torch.no_grad():
        encoders.sync.vfeat_extractor.norm.bias[0] = torch.nan
    write(videos, tmp_path / "broken", encoders, weights, 3)
    shards = sorted((tmp_path / "broken" / "features").glob("*.safetensors"))
    reasons = {header.video: header.left_out for header in map(read_header, shards)}
    assert reasons.pop("c.mp4") and len(reasons) == 3
    assert set(reasons.values()) == {"its sync_features come out as values that are not finite"}
    assert len(list((tmp_path / "broken" / "features").iterdir())) == 4 + 1  # nothing begun stays, beside the locks
    started = set(threading.enumerate()).difference(threads_before)
    assert not [thread for thread in started if thread.name.startswith(("producer", "writer"))]


def test_readers_follow_from_the_cores_the_memory_and_the_device(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(shard_jobs, "count_cores", lambda: 16)
    monkeypatch.setattr(shard_jobs, "free_memory", lambda device: 64 << 30)
    many = share_cores(20, gpu)
    assert (many.readers, many.codec, many.workers) == (8, 1, 2)
    assert replace(many, codec=16, workers=16, readers=1) == share_cores(1, gpu)
    assert share_cores(20, CPU).readers == 2 and share_cores(20, gpu, readers=3).readers == 3
    monkeypatch.setattr(shard_jobs, "free_memory", lambda device: 3 << 30)
    assert share_cores(20, gpu).readers == 3
    assert share_cores(20, gpu).codec == share_cores(20, gpu, readers=1).codec == 1
