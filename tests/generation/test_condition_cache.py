"""Kept features of videos: nothing is decoded or encoded twice, and what is kept is bounded and can be removed."""

import os
import shutil

import av
import pytest
import torch
from huggingface_hub import constants
from random_model import MODEL

from mmaudio.commands.__main__ import main as command
from mmaudio.errors import DataError
from mmaudio.features.encoders import encoder_identities
from mmaudio.generation import __main__ as generation
from mmaudio.generation import condition_cache, conditions, generation_flags, job_generator
from mmaudio.generation.condition_cache import ConditionCache, default_folder, measure
from mmaudio.generation.conditions import VisualInput, encode_features
from mmaudio.generation.generate import GenerationRequest, generate_samples
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.windows import plan_windows


@pytest.fixture
def decoded_windows(monkeypatch):
    """The beginnings of the windows that are decoded, as they are."""
    starts, read = [], conditions.read_frame_windows

    def count(info, window_starts, grids):
        starts.extend(window_starts)
        return read(info, window_starts, grids)

    monkeypatch.setattr(conditions, "read_frame_windows", count)
    return starts


def run_command(base, output, *flags):
    arguments = ["--model", MODEL, "--weights", base, "--device", "cpu", "--steps", "1", "--output", output, *flags]
    return generation.main([str(argument) for argument in arguments])


def read_samples(path):
    with av.open(str(path)) as container:
        return b"".join(bytes(frame.planes[0]) for frame in container.decode(audio=0))


@pytest.mark.slow
def test_another_prompt_and_seed_decode_and_encode_nothing(base, tmp_path, decoded_windows, monkeypatch):
    loads = []
    load = job_generator.load_encoders
    monkeypatch.setattr(job_generator, "load_encoders", lambda *a: loads.append(load(*a)) or loads[-1])
    video = ["--video", base / "a.mp4", "--conditions", tmp_path / "kept", "--seconds", "1"]
    run_command(base, tmp_path / "first.flac", *video, "--prompt", "rain")
    assert decoded_windows == [0.0]
    shutil.copy(base / "a.mp4", tmp_path / "renamed.mp4")
    other = ["--video", tmp_path / "renamed.mp4", *video[2:]]
    run_command(base, tmp_path / "second.flac", *other, "--prompt", "wind", "--seed", "3")
    run_command(base, tmp_path / "third.flac", *other, "--prompt", "rain")
    assert decoded_windows == [0.0], "the content is the same"
    assert [encoders.sync is None for encoders in loads] == [False, True, True], "an encoder without work is not loaded"
    sounds = [read_samples(tmp_path / f"{name}.flac") for name in ("first", "second", "third")]
    assert sounds[0] == sounds[2] != sounds[1]
    run_command(base, tmp_path / "fourth.flac", *other, "--start", "0.5")
    assert decoded_windows == [0.0, 0.5]


def test_features_belong_to_a_content_and_to_encoders(base, tmp_path):
    identities = encoder_identities(MODEL, base)
    cache = ConditionCache(tmp_path, identities)
    shutil.copy(base / "a.mp4", tmp_path / "copy.mp4")
    assert cache.key(base / "a.mp4") == cache.key(tmp_path / "copy.mp4") != cache.key(base / "long.mp4")
    assert cache.key(base / "a.mp4") != ConditionCache(tmp_path, identities | {"sync": "other"}).key(base / "a.mp4")


@pytest.mark.slow
def test_an_interrupted_encoding_goes_on(base, tmp_path, sampler, encoders, decoded_windows):
    grid = plan_windows(sampler.spec.codec, 15.0)
    cache = ConditionCache(tmp_path, {})
    visual = VisualInput(base / "long.mp4")

    def stop(items, label):
        yield items[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_features(visual, grid, encoders, cache.open(base / "long.mp4"), stop)
    assert not cache.is_complete(visual, grid)
    decoded_windows.clear()
    features = encode_features(visual, grid, encoders, cache.open(base / "long.mp4"), lambda items, label: items)
    assert decoded_windows == list(grid.start_times[1:])
    assert cache.is_complete(visual, grid)
    whole = encode_features(visual, grid, encoders, PartStore(), lambda items, label: items)
    sampler.network.set_duration(8)
    for window in range(len(grid.starts)):
        for pair in zip(features.get(window, sampler.network), whole.get(window, sampler.network), strict=True):
            torch.testing.assert_close(*pair)


def fill(folder, key, age):
    store = PartStore(folder, key, shared=True)
    store.put("0", {"clip_f": torch.zeros(250)})
    stamp = folder.stat().st_mtime - age
    os.utime(folder / key, (stamp, stamp))
    return folder / key


def test_what_was_not_used_for_the_longest_time_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(condition_cache, "MAX_BYTES", 2500)
    old, new, newest, recent = (
        fill(tmp_path, letter * 32, age) for letter, age in zip("abcd", (9e4, 8e4, 7e4, 1), strict=True)
    )
    (tmp_path / "notes.txt").write_text("somebody else's")
    ConditionCache(tmp_path, {}).limit_size()
    assert [path.exists() for path in (old, new, newest, recent)] == [False, False, True, True]
    monkeypatch.setattr(condition_cache, "MAX_BYTES", 0)
    ConditionCache(tmp_path, {}).limit_size()
    assert not newest.exists() and recent.exists(), "a process may still read what was used just now"
    assert (tmp_path / "notes.txt").exists()


def test_a_command_says_their_size_and_removes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))  # other tests keep features, too
    fill(default_folder(), "e" * 32, 0)
    command(["conditions"])
    assert "conditions: features of 1 videos, 1" in (printed := capsys.readouterr().out) and "at most 4" in printed
    command(["conditions", "--remove"])
    assert capsys.readouterr().out.endswith("; removed\n") and not default_folder().exists()
    command(["conditions", "--conditions", str(tmp_path / "nowhere")])
    assert "features of 0 videos" in capsys.readouterr().out
    assert measure(tmp_path) == {}


@pytest.mark.slow
def test_damaged_features_are_an_error_with_a_remedy(base, tmp_path, sampler, encoders):
    request = GenerationRequest(base / "a.mp4", seconds=1, num_steps=1)
    store = ConditionCache(tmp_path, {}).open(base / "a.mp4")
    generate_samples(sampler, encoders, request, condition_store=store)
    file = next(store.folder.iterdir())
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="mmaudio-lora conditions --remove"):
        generate_samples(sampler, encoders, request, condition_store=store)


def test_a_folder_that_cannot_be_written_keeps_nothing(base, tmp_path):
    (tmp_path / "file").write_text("")
    assert ConditionCache(tmp_path / "file" / "kept", {}).open(base / "a.mp4") is None


def test_finished_parts_belong_to_the_weights_of_the_base(base, tmp_path):
    """A fine-tuned base under the same name would go on from the latents of another one."""
    folders = []
    for weights in (base, tmp_path / "other"):
        if weights != base:
            shutil.copytree(base, weights)
            content = bytearray((weights / "network.safetensors").read_bytes())
            content[-1] ^= 1
            (weights / "network.safetensors").write_bytes(content)
        args = generation_flags.build_parser().parse_args(
            ["--prompt", "rain", "--seconds", "20", "--output", str(tmp_path / "out"), "--weights", str(weights)]
        )
        (job,) = generation.plan_jobs(args).jobs
        folders.append(job_generator.open_store(job, {"model": MODEL}, args).folder)
    assert folders[0] != folders[1]
