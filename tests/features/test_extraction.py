"""Extraction: right rows for every clip, nothing redone that is valid, the same bits after a kill."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import make_video, random_encoders
from safetensors.torch import load_file, save_file

from mmaudio.data.clips import Clip, read_clips, write_clips
from mmaudio.data.feature_store import read_header, shard_path
from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.features.encoders import encode_video, load_encoders
from mmaudio.features.extraction import Extraction, extract
from mmaudio.features.video_features import encode_clips
from mmaudio.media.frame_windows import read_windows
from mmaudio.media.video import probe
from mmaudio.model.spec import MODELS, lengths

SCRIPT = Path(__file__).parents[2] / "training" / "extract_features_finetuning.py"
MODEL = "tiny_16k"
SECONDS = 1.0


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_encoders(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def encoders(weights):
    return load_encoders(MODEL, weights)


@pytest.fixture
def folder(tmp_path):
    """Three videos and their table: two clips of `a.mp4`, one each of the others."""
    for name, fps in (("a.mp4", 24), ("b.mp4", 25), ("c.mp4", 30)):
        make_video(tmp_path / name, 2, fps)
    clips = [clip("a.mp4", 0.0), clip("a.mp4", 0.5, "a bell"), clip("b.mp4", 0.0), clip("c.mp4", 0.25)]
    write_clips(tmp_path / "clips.tsv", clips)
    return tmp_path


def clip(video, start, caption="a tone"):
    return Clip(f"{video[0]}_{start}", video, start, start + SECONDS, caption, "train", -3.0, -20.0, 0.0)


def run(folder, weights, progress=iter, found=lambda jobs: None, **how):
    how = Extraction(MODEL, weights, **how)
    return extract(folder / "clips.tsv", folder, folder / "features", how, progress, found)


def shards(folder):
    return sorted((folder / "features").glob("*.safetensors"))


def contents(folder):
    return {path.name: path.read_bytes() for path in shards(folder)}


def encoded(path, clips, encoders):
    """The features of a video's clips by name, as they are handed on."""
    rows = {}
    encode_clips(path, clips, encoders, lambda name, number, row: rows.setdefault(name, {}).update({number: row}))
    return {name: torch.stack([row[number] for number in range(len(clips))]) for name, row in rows.items()}


def change(folder, number, **changes):
    """Change one clip of the table."""
    clips = read_clips(folder / "clips.tsv")
    clips[number] = replace(clips[number], **changes)
    write_clips(folder / "clips.tsv", clips)


def test_a_shard_holds_the_features_of_every_clip(folder, weights, encoders):
    report = run(folder, weights)
    assert (report.made, report.valid, report.clips, report.left_out) == (3, 0, 4, [])
    size, spec = lengths(MODELS[MODEL].codec, SECONDS), MODELS[MODEL]
    shard = load_file(shard_path(folder / "features", "a.mp4"))
    assert shard["mean"].shape == shard["std"].shape == (2, size.latent, spec.codec.latent_dim)
    assert shard["clip_features"].shape == (2, size.clip, spec.clip.image_dim)
    assert shard["sync_features"].shape == (2, size.sync, spec.sync.width)
    assert shard["text_features"].shape == (2, 77, spec.clip.text_dim)
    assert all(tensor.dtype == torch.float32 for tensor in shard.values())
    header = read_header(shard_path(folder / "features", "a.mp4"))
    assert (header.clip_ids, header.captions) == (["a_0.0", "a_0.5"], ["a tone", "a bell"])
    for row, start in enumerate((0.0, 0.5)):
        stills, motion = encode_video(folder / "a.mp4", encoders, SECONDS, start)
        torch.testing.assert_close(shard["clip_features"][row], stills[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(shard["sync_features"][row], motion[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shard["text_features"], encoders.texts(["a tone", "a bell"]), atol=1e-5, rtol=1e-4)
    assert not torch.equal(shard["mean"][0], shard["mean"][1])


def test_a_second_run_redoes_nothing_and_the_same_input_gives_the_same_bits(folder, weights):
    run(folder, weights)
    before = contents(folder)
    stamps = [path.stat().st_mtime_ns for path in shards(folder)]
    report = run(folder, weights)
    assert (report.made, report.valid, report.clips) == (0, 3, 4)
    assert stamps == [path.stat().st_mtime_ns for path in shards(folder)]
    shard_path(folder / "features", "a.mp4").unlink()
    assert run(folder, weights).made == 1
    assert contents(folder) == before


@pytest.mark.slow
def test_only_what_changed_is_redone(folder, weights, tmp_path_factory):
    run(folder, weights)
    before = contents(folder)
    change(folder, 2, caption="a gong")
    report = run(folder, weights)
    assert (report.made, report.texts, report.valid) == (0, 1, 2)
    path = shard_path(folder / "features", "b.mp4")
    after = load_file(path)
    old = folder / "old.safetensors"
    old.write_bytes(before[path.name])
    same = {name: torch.equal(tensor, after[name]) for name, tensor in load_file(old).items()}
    assert same == {**dict.fromkeys(same, True), "text_features": False}

    change(folder, 3, start=0.5, end=1.5, id="c_0.5")
    assert run(folder, weights).made == 1
    make_video(folder / "b.mp4", 3, 25)
    assert run(folder, weights).made == 1
    path.write_bytes(path.read_bytes()[:1000])
    assert run(folder, weights).made == 1
    other = tmp_path_factory.mktemp("other")
    for file in weights.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    state = load_file(other / "synchformer.safetensors")
    save_file({key: value * 1.5 for key, value in state.items()}, other / "synchformer.safetensors")
    assert run(folder, other).made == 3


def test_a_broken_video_is_left_out_and_the_rest_goes_on(folder, weights):
    (folder / "b.mp4").write_bytes((folder / "b.mp4").read_bytes()[:3000])
    make_video(folder / "c.mp4", 0.6)
    report = run(folder, weights)
    reasons = {row.video: row.reason for row in report.left_out}
    assert reasons.keys() == {"b.mp4", "c.mp4"}
    assert "cut off" in reasons["b.mp4"]
    assert "the picture ends at 0.60 s" in reasons["c.mp4"]
    assert (report.made, report.clips) == (3, 2)
    again = run(folder, weights)
    assert (again.valid, {row.video: row.reason for row in again.left_out}) == (3, reasons)
    make_video(folder / "b.mp4", 2)
    mended = run(folder, weights)
    assert (mended.made, [row.video for row in mended.left_out]) == (1, ["c.mp4"])


def test_features_outlive_their_videos(folder, weights):
    run(folder, weights)
    (folder / "a.mp4").unlink()
    report = run(folder, weights)
    assert (report.valid, report.left_out) == (3, [])
    shard_path(folder / "features", "a.mp4").unlink()
    assert [row.reason for row in run(folder, weights).left_out] == ["not there any more"]


def test_mistakes_are_said_before_any_work(folder, weights, tmp_path):
    with pytest.raises(DataError, match="none of the table's 3 videos is there"):
        extract(folder / "clips.tsv", weights, folder / "features", Extraction(MODEL, weights))
    with pytest.raises(WeightsError, match="not found"):
        extract(folder / "clips.tsv", folder, folder / "features", Extraction("small_16k", tmp_path))
    with pytest.raises(ConfigError, match="did you mean"):
        extract(folder / "clips.tsv", folder, folder / "features", Extraction("small_16", tmp_path))
    change(folder, 0, end=1.5)
    with pytest.raises(DataError, match="durations"):
        run(folder, weights)
    assert not (folder / "features").exists()
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(b"")
    change(folder, 0, end=1.0)
    with pytest.raises(DataError, match="no clip could be used"):
        run(folder, weights)


def test_sound_reaches_past_the_clip_and_keeps_its_place(folder, encoders):
    clips = [clip("a.mp4", 0.0), clip("a.mp4", 1.0)]
    both, alone = encoded(folder / "a.mp4", clips, encoders), encoded(folder / "a.mp4", clips[1:], encoders)
    for name in both:
        torch.testing.assert_close(both[name][1:], alone[name], atol=1e-4, rtol=1e-3)


def test_overlapping_clips_share_the_frames_of_the_same_instants(folder, encoders):
    """Every picture goes through CLIP once, in whatever many clips it is seen."""
    seen = []
    handle = encoders.clip.model.visual.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    make_video(folder / "a.mp4", 3, 24)
    together = encoded(folder / "a.mp4", [clip("a.mp4", start) for start in (0.0, 0.5, 1.0, 1.5)], encoders)
    shared, seen[:] = sum(seen), []
    alone = [encoded(folder / "a.mp4", [clip("a.mp4", start)], encoders) for start in (0.0, 0.5, 1.0, 1.5)]
    handle.remove()
    assert (shared, sum(seen)) == (8 + 3 * 4, 4 * 8)  # 8 frames a second
    for number, rows in enumerate(alone):
        torch.testing.assert_close(together["clip_features"][number], rows["clip_features"][0], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_clip_from_the_middle_is_the_same_as_a_file_of_its_own(tmp_path, encoders):
    """The packets of seconds 4 to 12 of a long video, copied into a file: the same pictures, the same features."""
    long, own = tmp_path / "long.mkv", tmp_path / "own.mkv"
    noise = np.random.default_rng(0)
    with av.open(str(long), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"g": "25", "bf": "0", "sc_threshold": "0"})
        video.width = video.height = 96
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for second in range(15):
            for index in range(25 * second, 25 * second + 25):
                picture = noise.integers(256, size=(12, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(video.encode(frame))
            samples = noise.integers(-9000, 9000, size=(1, 16_000), dtype=np.int16)
            block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            block.sample_rate, block.time_base, block.pts = 16_000, Fraction(1, 16_000), 16_000 * second
            container.mux(sound.encode(block))
        container.mux(video.encode(None))
    with av.open(str(long)) as source, av.open(str(own), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None and 4 <= packet.pts * packet.time_base < 13:
                packet.pts = packet.dts = packet.pts - round(4 / packet.time_base)
                packet.stream = streams[packet.stream_index]
                target.mux(packet)

    def windows(path, starts):
        return list(read_windows(probe(path), starts, encoders.grids(8.0)))

    middle, alone = windows(long, [0.0, 4.0])[1], windows(own, [0.0])[0]
    for grid in range(2):
        assert torch.equal(torch.stack(middle.frames[grid]), torch.stack(alone.frames[grid]))
        assert middle.times[grid] == pytest.approx([time + 4 for time in alone.times[grid]], abs=1e-3)
    rows = replace(clip("a.mp4", 0.0), end=8.0)
    inside = encoded(long, [rows, replace(rows, start=4.0, end=12.0)], encoders)
    outside = encoded(own, [rows], encoders)
    for name in inside:
        torch.testing.assert_close(inside[name][1], outside[name][0], atol=1e-4, rtol=0)


def test_what_was_finished_before_an_interruption_stays(folder, weights):
    def interrupted(jobs):
        yield jobs[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, weights, progress=interrupted)
    kept = contents(folder)
    assert len(kept) == 1
    report = run(folder, weights)
    assert (report.made, report.valid) == (2, 1)
    assert kept.items() <= contents(folder).items()


@pytest.mark.slow
def test_a_kill_loses_at_most_the_video_in_work(folder, weights):
    """SIGKILL as soon as the first shard is there; the second run does the rest, bit for bit as without the kill."""
    command = [
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((folder / "features").glob("[!.]*.safetensors")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = contents(folder)
    whole = [name for name in kept if name.endswith(".safetensors")]
    assert len(whole) >= 1

    spec = importlib.util.spec_from_file_location("extract_command", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert module.main(command[2:]) == 0
        after = {name: content for name, content in contents(folder).items() if name.endswith(".safetensors")}
        assert len(after) == 3
        assert all(after[name] == kept[name] for name in whole)
        for path in shards(folder):
            path.unlink()
        assert module.main(command[2:]) == 0
    finally:
        torch.set_num_threads(threads)
    assert contents(folder) == after
