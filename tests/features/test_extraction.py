"""Extraction: the rows of every clip, no second computation of valid shards, the same bits after a kill."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from extraction_inputs import (
    MODEL,
    SCRIPT,
    SECONDS,
    clip_row,
    extraction_command,
    run_extraction,
    shard_contents,
    shard_files,
)
from safetensors.torch import load_file, save_file
from timed_videos import rustle, several
from video_corpus import Sound
from video_files import random_encoders, write_tone_video

from mmaudio.data.clip_table import read_clips, write_clips
from mmaudio.data.feature_store import read_header, shard_path
from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.features.encoders import encode_video, load_encoders
from mmaudio.features.extraction import ExtractionConfig, extract
from mmaudio.features.video_features import encode_clips
from mmaudio.media.frame_windows import read_frame_windows
from mmaudio.media.video import probe
from mmaudio.model.spec import MODELS, compute_lengths


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_encoders(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def encoders(weights):
    return load_encoders(MODEL, weights)


@pytest.mark.slow
@pytest.mark.parametrize("video", ["../a.mp4", "sub/../../a.mp4", "/tmp/a.mp4", "link/../../a.mp4"])
def test_a_table_that_names_videos_outside_of_their_folder_is_refused(tmp_path, weights, video):
    write_tone_video(tmp_path / "a.mp4", 2)
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    (tmp_path / "videos" / "link").symlink_to("sub")
    video = video.replace("/tmp", str(tmp_path))
    folder = tmp_path / "videos"
    write_clips(folder / "clips.tsv", [clip_row(video, 0.0)])
    with pytest.raises(DataError, match=r"clips\.tsv: 1 clips are of videos outside .* --allow-outside"):
        run_extraction(folder, weights)
    assert not shard_files(folder)
    assert run_extraction(folder, weights, allow_outside=True).extracted == 1


@pytest.fixture
def folder(tmp_path):
    """Three videos and their table: two clips of `a.mp4`, one each of the others."""
    for name, fps in (("a.mp4", 24), ("b.mp4", 25), ("c.mp4", 30)):
        write_tone_video(tmp_path / name, 2, fps)
    clips = [clip_row("a.mp4", 0.0), clip_row("a.mp4", 0.5, "a bell"), clip_row("b.mp4", 0.0), clip_row("c.mp4", 0.25)]
    write_clips(tmp_path / "clips.tsv", clips)
    return tmp_path


def encode_rows(path, clips, encoders):
    """The features of a video's clips by name, in the order of the clips."""
    rows = {}
    encode_clips(path, clips, encoders, lambda name, number, row: rows.setdefault(name, {}).update({number: row}))
    return {name: torch.stack([row[number] for number in range(len(clips))]) for name, row in rows.items()}


def change(folder, number, **changes):
    """Change one clip of the table."""
    clips = read_clips(folder / "clips.tsv")
    clips[number] = replace(clips[number], **changes)
    write_clips(folder / "clips.tsv", clips)


@pytest.mark.slow
def test_a_shard_has_the_features_of_every_clip(folder, weights, encoders):
    report = run_extraction(folder, weights)
    assert (report.extracted, report.valid, report.clips, report.left_out) == (3, 0, 4, [])
    size, spec = compute_lengths(MODELS[MODEL].codec, SECONDS), MODELS[MODEL]
    shard = load_file(shard_path(folder / "features", "a.mp4"))
    assert shard["mean"].shape == shard["std"].shape == (2, size.latent_tokens, spec.codec.latent_dim)
    assert shard["clip_features"].shape == (2, size.clip_tokens, spec.clip.image_dim)
    assert shard["sync_features"].shape == (2, size.sync_tokens, spec.sync.width)
    assert shard["text_features"].shape == (2, 77, spec.clip.text_dim)
    assert all(tensor.dtype == torch.float32 for tensor in shard.values())
    header = read_header(shard_path(folder / "features", "a.mp4"))
    assert (header.clip_ids, header.captions) == (["a_0.0", "a_0.5"], ["a tone", "a bell"])
    for row, start in enumerate((0.0, 0.5)):
        clip_features, sync_features = encode_video(folder / "a.mp4", encoders, SECONDS, start)
        torch.testing.assert_close(shard["clip_features"][row], clip_features[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(shard["sync_features"][row], sync_features[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        shard["text_features"], encoders.encode_texts(["a tone", "a bell"]), atol=1e-5, rtol=1e-4
    )
    assert not torch.equal(shard["mean"][0], shard["mean"][1])


@pytest.mark.slow
def test_a_second_run_writes_nothing_and_the_same_input_gives_the_same_bits(folder, weights):
    run_extraction(folder, weights)
    before = shard_contents(folder)
    stamps = [path.stat().st_mtime_ns for path in shard_files(folder)]
    report = run_extraction(folder, weights)
    assert (report.extracted, report.valid, report.clips) == (0, 3, 4)
    assert stamps == [path.stat().st_mtime_ns for path in shard_files(folder)]
    shard_path(folder / "features", "a.mp4").unlink()
    assert run_extraction(folder, weights).extracted == 1
    assert shard_contents(folder) == before


@pytest.mark.slow
def test_only_stale_shards_are_written_again(folder, weights, tmp_path_factory):
    run_extraction(folder, weights)
    before = shard_contents(folder)
    change(folder, 2, caption="a gong")
    report = run_extraction(folder, weights)
    assert (report.extracted, report.text_only, report.valid) == (0, 1, 2)
    path = shard_path(folder / "features", "b.mp4")
    after = load_file(path)
    old = folder / "old.safetensors"
    old.write_bytes(before[path.name])
    same = {name: torch.equal(tensor, after[name]) for name, tensor in load_file(old).items()}
    assert same == {**dict.fromkeys(same, True), "text_features": False}

    change(folder, 3, start=0.5, end=1.5, id="c_0.5")
    assert run_extraction(folder, weights).extracted == 1
    write_tone_video(folder / "b.mp4", 3, 25)
    assert run_extraction(folder, weights).extracted == 1
    path.write_bytes(path.read_bytes()[:1000])
    assert run_extraction(folder, weights).extracted == 1
    other = tmp_path_factory.mktemp("other")
    for file in weights.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    state = load_file(other / "synchformer.safetensors")
    save_file({key: value * 1.5 for key, value in state.items()}, other / "synchformer.safetensors")
    assert run_extraction(folder, other).extracted == 3


@pytest.mark.slow
def test_a_broken_video_is_left_out_and_the_others_are_extracted(folder, weights):
    (folder / "b.mp4").write_bytes((folder / "b.mp4").read_bytes()[:3000])
    write_tone_video(folder / "c.mp4", 0.6)
    report = run_extraction(folder, weights)
    reasons = {row.video: row.reason for row in report.left_out}
    assert reasons.keys() == {"b.mp4", "c.mp4"}
    assert "cut off" in reasons["b.mp4"]
    assert "the picture ends at 0.60 s" in reasons["c.mp4"]
    assert (report.extracted, report.clips) == (3, 2)
    again = run_extraction(folder, weights)
    assert (again.valid, {row.video: row.reason for row in again.left_out}) == (3, reasons)
    write_tone_video(folder / "b.mp4", 2)
    repaired = run_extraction(folder, weights)
    assert (repaired.extracted, [row.video for row in repaired.left_out]) == (1, ["c.mp4"])


@pytest.mark.slow
def test_features_stay_valid_without_their_videos(folder, weights):
    run_extraction(folder, weights)
    (folder / "a.mp4").unlink()
    report = run_extraction(folder, weights)
    assert (report.valid, report.left_out) == (3, [])
    shard_path(folder / "features", "a.mp4").unlink()
    assert [row.reason for row in run_extraction(folder, weights).left_out] == ["not there any more"]


@pytest.mark.slow
def test_invalid_inputs_are_refused_before_any_work(folder, weights, tmp_path):
    with pytest.raises(DataError, match="none of the table's 3 videos is there"):
        extract(folder / "clips.tsv", weights, folder / "features", ExtractionConfig(MODEL, weights))
    with pytest.raises(WeightsError, match="not found"):
        extract(folder / "clips.tsv", folder, folder / "features", ExtractionConfig("small_16k", tmp_path))
    with pytest.raises(ConfigError, match="did you mean"):
        extract(folder / "clips.tsv", folder, folder / "features", ExtractionConfig("small_16", tmp_path))
    change(folder, 0, end=1.5)
    with pytest.raises(DataError, match="durations"):
        run_extraction(folder, weights)
    assert not (folder / "features").exists()
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(b"")
    change(folder, 0, end=1.0)
    with pytest.raises(DataError, match="no clip could be used"):
        run_extraction(folder, weights)


def test_features_of_a_clip_do_not_depend_on_the_other_clips(folder, encoders):
    clips = [clip_row("a.mp4", 0.0), clip_row("a.mp4", 1.0)]
    both, alone = encode_rows(folder / "a.mp4", clips, encoders), encode_rows(folder / "a.mp4", clips[1:], encoders)
    for name in both:
        torch.testing.assert_close(both[name][1:], alone[name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_overlapping_clips_share_their_frames(folder, encoders):
    """Every frame goes through CLIP once, however many clips have it."""
    batch_sizes = []
    handle = encoders.clip.model.visual.register_forward_pre_hook(
        lambda module, inputs: batch_sizes.append(len(inputs[0]))
    )
    write_tone_video(folder / "a.mp4", 3, 24)
    together = encode_rows(folder / "a.mp4", [clip_row("a.mp4", start) for start in (0.0, 0.5, 1.0, 1.5)], encoders)
    shared, batch_sizes[:] = sum(batch_sizes), []
    alone = [encode_rows(folder / "a.mp4", [clip_row("a.mp4", start)], encoders) for start in (0.0, 0.5, 1.0, 1.5)]
    handle.remove()
    assert (shared, sum(batch_sizes)) == (8 + 3 * 4, 4 * 8)  # 8 frames a second
    for number, rows in enumerate(alone):
        torch.testing.assert_close(together["clip_features"][number], rows["clip_features"][0], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_clip_from_the_middle_equals_a_file_of_that_clip(tmp_path, encoders):
    """The packets of seconds 4 to 12 of a long video, copied into a file: the same pictures, the same features."""
    long, excerpt = tmp_path / "long.mkv", tmp_path / "excerpt.mkv"
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
    with av.open(str(long)) as source, av.open(str(excerpt), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None and 4 <= packet.pts * packet.time_base < 13:
                packet.pts = packet.dts = packet.pts - round(4 / packet.time_base)
                packet.stream = streams[packet.stream_index]
                target.mux(packet)

    def windows(path, starts):
        return list(read_frame_windows(probe(path), starts, encoders.frame_grids(8.0)))

    middle, alone = windows(long, [0.0, 4.0])[1], windows(excerpt, [0.0])[0]
    for grid in range(2):
        assert torch.equal(torch.stack(middle.frames[grid]), torch.stack(alone.frames[grid]))
        assert middle.presentation_times[grid] == pytest.approx(
            [time + 4 for time in alone.presentation_times[grid]], abs=1e-3
        )
    rows = replace(clip_row("a.mp4", 0.0), end=8.0)
    inside = encode_rows(long, [rows, replace(rows, start=4.0, end=12.0)], encoders)
    outside = encode_rows(excerpt, [rows], encoders)
    for name in inside:
        torch.testing.assert_close(inside[name][1], outside[name][0], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_shards_written_before_an_interruption_stay(folder, weights):
    def interrupt(plans):
        yield plans[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_extraction(folder, weights, progress=interrupt)
    finished = shard_contents(folder)
    assert len(finished) == 1
    report = run_extraction(folder, weights)
    assert (report.extracted, report.valid) == (2, 1)
    assert finished.items() <= shard_contents(folder).items()


@pytest.mark.slow
def test_a_kill_loses_at_most_the_video_in_progress(folder, weights):
    """SIGKILL after the first shard; the second run writes the remaining ones, bit for bit as without the kill."""
    command = extraction_command(folder, weights)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((folder / "features").glob("[!.]*.safetensors")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finished = shard_contents(folder)
    whole = [name for name in finished if name.endswith(".safetensors")]
    assert len(whole) >= 1

    spec = importlib.util.spec_from_file_location("extract_command", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert module.main(command[2:]) == 0
        after = {name: content for name, content in shard_contents(folder).items() if name.endswith(".safetensors")}
        assert len(after) == 3
        assert all(after[name] == finished[name] for name in whole)
        for path in shard_files(folder):
            path.unlink()
        assert module.main(command[2:]) == 0
    finally:
        torch.set_num_threads(threads)
    assert shard_contents(folder) == after


@pytest.mark.slow
def test_the_chosen_picture_and_channel_are_encoded(tmp_path, encoders):
    wave = rustle(1.5, 16_000)
    inverted = Sound("pcm_s16le", 16_000, 2, wave=np.stack([wave, -wave]))
    two = several(tmp_path / "two.mkv", [15, 15], 0, sound=inverted)
    one = several(tmp_path / "one.mkv", [15], first=100, sound=Sound("pcm_s16le", 16_000, wave=wave))

    def encode(path, **streams):
        rows = {}
        clip = replace(clip_row(path.name, 0.0), gain_db=0.0, **streams)
        encode_clips(path, [clip], encoders, lambda name, index, row: rows.update({name: row}))
        return rows

    expected, default, chosen = encode(one), encode(two), encode(two, video_track=1, channel=0)
    for name in ("clip_features", "sync_features", "mean"):
        torch.testing.assert_close(chosen[name], expected[name])
        assert not torch.allclose(default[name], expected[name], rtol=1.3e-6, atol=1e-5)  # those of assert_close
