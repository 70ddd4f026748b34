"""What an evaluation takes and refuses, and single parts of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_inputs import SECONDS, evaluate_arguments
from random_model import MODEL, write_random_weights
from safetensors.torch import load_file, save_file

import evaluate_lora
from mmaudio.data.clip_table import read_clips, write_clips
from mmaudio.data.feature_store import load_features
from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.evaluation.config import SamplingConfig
from mmaudio.evaluation.evaluate import is_report_whole
from mmaudio.evaluation.general_domain import spread_over_videos
from mmaudio.evaluation.inference import velocity_losses
from mmaudio.generation.sampler import load_sampler
from mmaudio.lora import checkpoint as adapters
from mmaudio.lora.strength import AS_TRAINED, uniform_strength


@pytest.mark.slow
def test_the_loss_of_a_zero_network_is_the_closed_form(root):
    sampler = load_sampler(MODEL, root / "weights")
    sampler.network.set_duration(SECONDS)
    for parameter in sampler.network.final_layer.parameters():
        parameter.zero_()
    features = load_features(root / "clips.tsv", root / "features", "test", MODEL)
    losses = velocity_losses(sampler, features, SamplingConfig(), "loss")
    mean = features.mean - sampler.network.latent_mean
    expected = mean.square().mean((1, 2)) + features.std.square().mean((1, 2)) + 1  # E (x1 - x0)^2
    assert losses == pytest.approx(expected.tolist(), rel=0.1)


def test_few_clips_are_spread_over_the_videos():
    videos = ["a"] * 4 + ["b"] + ["c"] * 3
    assert spread_over_videos(videos, 4) == [0, 1, 4, 5]
    assert spread_over_videos(videos, None) == list(range(8))


@pytest.mark.slow
def test_an_adapter_without_a_base_name_takes_it_from_the_command(root, tmp_path):
    adapter = adapters.read_adapter(root / "exp" / "lora_checkpoints" / "best_lora.pt")
    adapters.write_adapter(tmp_path / "a.pt", replace(adapter, base_model="", base_sha256=""))
    where = ["--lora_checkpoint", str(tmp_path / "a.pt"), "--output", str(tmp_path / "out"), "--max_clips", "1"]
    with pytest.raises(WeightsError, match=r"names no base model.*--model"):
        evaluate_lora.main(evaluate_arguments(root, *where))
    with pytest.raises(WeightsError, match="made for tiny_16k, not for small_44k"):
        evaluate_lora.main(evaluate_arguments(root, "--model", "small_44k", "--output", str(tmp_path / "out")))
    evaluate_lora.main(evaluate_arguments(root, *where, "--model", MODEL))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["model"] == MODEL


def test_a_folder_without_the_videos_is_an_error_with_its_name(root, tmp_path):
    with pytest.raises(DataError, match="3 held-out videos are not there"):
        evaluate_lora.main(evaluate_arguments(root, "--test_videos", str(tmp_path), "--output", str(tmp_path / "out")))


def test_a_table_with_videos_outside_of_the_folder_is_refused(root, tmp_path):
    clips = read_clips(root / "clips.tsv")
    table, output = tmp_path / "clips.tsv", ("--output", str(tmp_path / "out"))
    write_clips(table, [replace(clips[0], video="../videos/one.mp4"), *clips[1:]])
    with pytest.raises(DataError, match=r"1 clips are of videos outside .*\.\./videos/one\.mp4.* --allow-outside"):
        evaluate_lora.main(evaluate_arguments(root, "--clips", str(table), *output))
    with pytest.raises(DataError, match="extract features first"):
        evaluate_lora.main(evaluate_arguments(root, "--clips", str(table), *output, "--allow-outside"))


def test_an_adapter_of_another_base_is_refused_before_any_work(root, tmp_path):
    write_random_weights(tmp_path / "other", encoders=False)
    network = load_file(tmp_path / "other" / "network.safetensors")
    save_file({name: value + 1 for name, value in network.items()}, tmp_path / "other" / "network.safetensors")
    with pytest.raises(WeightsError, match="another file of tiny_16k"):
        evaluate_lora.main(
            evaluate_arguments(root, "--weights", str(tmp_path / "other"), "--output", str(tmp_path / "out"))
        )
    assert not (tmp_path / "out").exists()


def test_invalid_numbers_are_refused(root):
    with pytest.raises(ConfigError, match="--samples 0"):
        evaluate_lora.main(evaluate_arguments(root, "--samples", "0"))


@pytest.mark.parametrize("guidance", ["nan", "inf", "0.5"])
def test_an_invalid_guidance_scale_is_refused_before_any_work(root, guidance):
    with pytest.raises(ConfigError, match="--guidance"):
        evaluate_lora.main(evaluate_arguments(root, "--guidance", guidance))


@pytest.mark.slow
def test_several_adapters_are_evaluated_as_they_are_used(root, tmp_path, capsys):
    first, second = root / "exp" / "lora_checkpoints" / "best_lora.pt", tmp_path / "rain.pt"
    adapter = adapters.read_adapter(first)
    adapters.write_adapter(second, replace(adapter, lora=replace(adapter.lora, alpha=2.0)))
    pairs = [
        ["--lora_checkpoint", str(first), "--strength", "0.5"],
        ["--adapter", str(second), "--strength", "fused=0"],
    ]
    few = ["--max_clips", "1", "--steps", "1", "--metrics", "mel_l1", "--output", str(tmp_path / "out"), "--strengths"]
    evaluate_lora.main(evaluate_arguments(root, *pairs[0], *pairs[1], *few, ""))
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [pair["strength"] for pair in results["adapters"]] == [0.5, "joint=1,fused=0,rest=1"]
    assert results["strengths"] == {} and results["metrics"]["mel_l1"]["difference"] != 0
    html = (tmp_path / "out" / "report" / "index.html").read_text()
    assert f"--adapter {first} --strength 0.5 --adapter {second} --strength joint=1,fused=0,rest=1" in html
    capsys.readouterr()
    evaluate_lora.main(evaluate_arguments(root, *pairs[1], *pairs[0], *few, ""))
    assert "still valid" in capsys.readouterr().out, "the order does not matter"
    with pytest.raises(ConfigError, match=r"--strengths 0\.5: it tries one adapter at several strengths"):
        evaluate_lora.main(evaluate_arguments(root, *pairs[1], *pairs[0], *few, "0.5"))


@pytest.mark.slow
def test_a_video_that_any_of_the_adapters_was_trained_on_is_refused(root, tmp_path):
    first = root / "exp" / "lora_checkpoints" / "best_lora.pt"
    features = load_features(root / "clips.tsv", root / "features", "test", MODEL)
    data = {"train": {"clips": 1, "videos": [features.videos[0]], "ids": [features.ids[0]]}}
    adapters.write_adapter(tmp_path / "a.pt", replace(adapters.read_adapter(first), data=data))
    for form in ("a.pt", "a"):  # the folder has hashes in place of the names
        both = ["--lora_checkpoint", str(first), "--lora_checkpoint", str(tmp_path / form)]
        with pytest.raises(DataError, match="held-out clips are of videos that were trained on"):
            evaluate_lora.main(evaluate_arguments(root, *both, "--output", str(tmp_path / "out"), "--strengths", ""))


def test_results_of_adapters_with_strengths_have_a_folder_of_their_own():
    dogs, rain = Path("output/dogs/lora_checkpoints/best_lora.pt"), Path("rain.pt")
    assert evaluate_lora.default_output([(dogs, AS_TRAINED)]) == Path("output/dogs")
    assert evaluate_lora.default_output([(dogs, uniform_strength(0.7))]) == Path("output/dogs/dogs_0.7")
    both = [(dogs, AS_TRAINED), (rain, uniform_strength(0.5))]
    assert evaluate_lora.default_output(both) == Path("output/dogs/dogs_1_and_rain_0.5")


def test_a_report_is_whole_with_every_file_that_it_plays(tmp_path):
    page, media = tmp_path / "index.html", tmp_path / "media"
    assert not is_report_whole(page)
    page.write_text('<video src="media/0.mp4" poster="data:,"></video><audio src="media/0_base.flac"></audio>')
    media.mkdir()
    for name in ("0.mp4", "0_base.flac"):
        assert not is_report_whole(page)
        (media / name).write_bytes(b"")
    assert is_report_whole(page)
