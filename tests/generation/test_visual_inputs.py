"""What is seen: a still in place of a video, and a video whose meaning is masked away."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image
from random_model import MODEL

from mmaudio.api import LoRAConfig, load_pretrained_with_lora
from mmaudio.errors import ConfigError, DataError, MMAudioError
from mmaudio.features.encoders import encode_video
from mmaudio.generation.__main__ import main
from mmaudio.generation.conditions import VisualInput, encode_features
from mmaudio.generation.generate import GenerationRequest, find_clip_range, generate_samples
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.windows import plan_windows
from mmaudio.media.picture import read_picture


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (45, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "harbour.png")
    return tmp_path / "harbour.png"


def plain(items, label):
    return items


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2.0, 14.0])
def test_masking_keeps_the_timing_and_takes_the_meaning(base, sampler, encoders, seconds):
    grid = plan_windows(sampler.spec.codec, seconds)
    sampler.network.set_duration(grid.window_seconds)
    masked = encode_features(VisualInput(base / "long.mp4", mask_away_clip=True), grid, encoders, PartStore(), plain)
    for window, time in enumerate(grid.start_times):
        clip_f, sync_f = masked.get(window, sampler.network)
        _, expected = encode_video(base / "long.mp4", encoders, grid.window_seconds, time)
        assert torch.equal(clip_f, sampler.network.empty_clip(1))
        torch.testing.assert_close(sync_f, expected)


@pytest.mark.slow
def test_masking_changes_the_audio(base, sampler, encoders):
    sounds = [
        generate_samples(
            sampler, encoders, GenerationRequest(base / "a.mp4", "rain", seconds=1, num_steps=2, mask_away_clip=masked)
        )
        for masked in (False, True)
    ]
    assert (sounds[0] - sounds[1]).abs().max() > 1e-3


def test_a_still_is_every_frame_and_nothing_moves(sampler, encoders, picture):
    grid = plan_windows(sampler.spec.codec, 14.0)
    sampler.network.set_duration(grid.window_seconds)
    features = encode_features(VisualInput(image=picture), grid, encoders, PartStore(), plain)
    frame = encoders.clip.resize(read_picture(picture)[None])
    expected = encoders.encode_clip_frames(frame)
    for window in range(len(grid.starts)):
        clip_f, sync_f = features.get(window, sampler.network)
        assert torch.equal(clip_f, expected.expand(1, 64, -1))
        assert torch.equal(sync_f, sampler.network.empty_sync(1))


def run_command(base, output, *flags):
    return main(
        ["--model", MODEL, "--weights", str(base), "--device", "cpu", "--output", str(output), *map(str, flags)]
    )


def read_media(path):
    """Durations by kind of stream, the first frame, and the comment."""
    with av.open(str(path)) as container:
        seconds = {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24") if container.streams.video else None
        return seconds, frame, json.loads(container.metadata["comment"])


@pytest.mark.slow
def test_a_still_gets_audio_and_a_video(base, tmp_path, picture, capsys):
    flags = ["--image", picture, "--seconds", "2.4", "--num_steps", "2"]
    assert run_command(base, tmp_path / "out", *flags) == 0
    files = [tmp_path / "out" / name for name in ("harbour.flac", "harbour.mp4")]
    assert capsys.readouterr().out.split() == [str(path) for path in files]
    seconds, frame, tags = read_media(files[1])
    assert seconds["video"] == pytest.approx(2.4, abs=0.05) and seconds["audio"] == pytest.approx(2.4, abs=0.1)
    assert frame.shape == (44, 70, 3)
    assert tags["image"] == "harbour.png" and tags["steps"] == 2


@pytest.mark.slow
def test_the_adaptive_solver_says_what_it_took(base, tmp_path, capsys):
    assert run_command(base, tmp_path / "a.wav", "--prompt", "rain", "--seconds", "1", "--method", "dopri5") == 0
    assert (
        "note: dopri5: " in (printed := capsys.readouterr().err) and " steps, " in printed and " evaluations" in printed
    )


@pytest.mark.slow
def test_the_flags_of_the_reference_are_known(base, tmp_path):
    video = ["--video", base / "a.mp4", "--seconds", "1", "--prompt", "rain"]
    assert run_command(base, tmp_path / "a.flac", *video, "--mask_away_clip", "--num_steps", "2") == 0
    with av.open(str(tmp_path / "a.flac")) as container:
        tags = json.loads(container.metadata["comment"])
    assert tags["mask_away_clip"] is True and tags["steps"] == 2


def test_a_picture_that_is_none_is_an_error_before_any_work(base, tmp_path, picture):
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:1000])
    (tmp_path / "text.jpg").write_text("no picture")
    for name, words in {
        "cut.png": "cut.png: no picture, or a damaged one; take a PNG",
        "text.jpg": "text.jpg: no picture",
        "nowhere.png": "nowhere.png: not there",
        ".": "not a file",
    }.items():
        with pytest.raises(DataError, match=words):
            run_command(tmp_path / "no_weights", tmp_path / "out", "--image", tmp_path / name)
    with pytest.raises(DataError, match=r"a\.mp4: no picture"):
        run_command(base, tmp_path / "out", "--image", base / "a.mp4")
    assert not (tmp_path / "out").exists()


def test_a_turned_photo_stands_upright(tmp_path):
    image, exif = Image.new("RGB", (20, 10), (200, 0, 0)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (3, 20, 10)
    Image.new("LA", (4, 4)).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": "rain", "mask_away_clip": True}, "mask_away_clip takes the timing from a video"),
        ({"image": "PICTURE", "mask_away_clip": True}, "mask_away_clip takes the timing from a video"),
        ({"image": "PICTURE", "start": 1.0}, "start=1: a picture"),
    ],
)
def test_inputs_that_exclude_each_other_are_refused(picture, settings, words):
    settings = {name: picture if value == "PICTURE" else value for name, value in settings.items()}
    with pytest.raises(ConfigError, match=words):
        GenerationRequest(None, **settings)
    with pytest.raises(ConfigError, match="both a video"):
        GenerationRequest(picture, image=picture)
    assert find_clip_range(GenerationRequest(None, image=picture)).seconds == 8


def test_a_still_is_written_as_mp4(base, tmp_path, picture):
    with pytest.raises(MMAudioError, match=r"a still with its audio is written as \.mp4"):
        run_command(base, tmp_path / "x.mkv", "--image", picture)


@pytest.mark.slow
def test_a_still_is_heard_from_python(base, sampler, encoders, picture):
    model = load_pretrained_with_lora(MODEL, lora_config=LoRAConfig(rank=2), weights=base, device="cpu")
    waveform = model.generate(None, image=str(picture), seconds=1, num_steps=1, seed=2)
    request = GenerationRequest(None, image=picture, seconds=1, num_steps=1, seed=2)
    assert waveform.shape == generate_samples(sampler, encoders, request)[0].shape and waveform.std() > 0
