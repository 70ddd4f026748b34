"""The whole evaluation on generated videos, random weights and a random adapter: what a user finds afterwards."""

import csv
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_base import MODEL, make_base, make_video
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate_lora
from mmaudio.config import TrainConfig, compose
from mmaudio.data.clips import Clip, LeftOut, left_out_path, read_clips, write_clips, write_left_out
from mmaudio.data.feature_store import Features, Header, load_features, shard_path, write_shard
from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.evaluation import inference as measure
from mmaudio.evaluation import model_runs as running
from mmaudio.evaluation.config import Request
from mmaudio.evaluation.evaluate import inputs_key
from mmaudio.evaluation.general_domain import spread
from mmaudio.evaluation.sync_check import Check
from mmaudio.generation.sampler import load_sampler
from mmaudio.lora import checkpoint as adapters
from mmaudio.lora.adapter import LoRAConfig, adapter_state, add_lora, expand_targets
from mmaudio.metrics.search import Search
from mmaudio.model.networks import build_network
from mmaudio.model.spec import lengths, model_spec
from mmaudio.report.provenance import commands
from mmaudio.weights.store import file_hash

SECONDS = 2.0
VIDEOS = ("one.mp4", "two.mp4", "three.mp4", "four.mp4")
SPLITS = ("test", "test", "test", "train")
ENCODERS = {"codec": f"{MODEL}:0", "clip": f"{MODEL}:0", "sync": f"{MODEL}:0"}


def random_features(clips: int, generator: torch.Generator, seconds: float = SECONDS) -> Features:
    spec = model_spec(MODEL)
    size, network = lengths(spec.codec, seconds), spec.network

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(clips, *shape, generator=generator)

    return Features(
        draw(size.latent, network.latent_dim),
        draw(size.latent, network.latent_dim).abs() / 10,
        draw(size.clip, network.clip_dim),
        draw(size.sync, network.sync_dim),
        draw(network.text_tokens, network.text_dim),
    )


def make_adapter(path: Path, weights: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    model = add_lora(load_sampler(MODEL, weights).network, LoRAConfig(rank=4), generator)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    adapters.write_adapter(
        path,
        adapters.AdapterFile(
            LoRAConfig(rank=4),
            adapter_state(model),
            MODEL,
            file_hash(weights / "network.safetensors"),
            expand_targets(build_network(MODEL), LoRAConfig().target_modules),
            step=10,
            config={"learning_rate": 1e-3, "lora": {"rank": 4}},
            data={"train": {"clips": 2, "videos": ["four.mp4"], "ids": ["four_0.0", "four_2.0"]}},
        ),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, nothing_ships):
    """Videos, table, features, base and adapter, as the earlier stages leave them."""
    root = tmp_path_factory.mktemp("evaluation")
    generator = torch.Generator().manual_seed(2)
    (root / "videos").mkdir()
    clips = []
    for seed, (video, split) in enumerate(zip(VIDEOS, SPLITS, strict=True)):
        make_video(root / "videos" / video, seed, 4.0)
        own = [
            Clip(f"{video[:-4]}_{start}", video, start, start + SECONDS, "a <b>ball</b>", split, -1.0, -20.0, 0.0)
            for start in (0.0, 2.0)
        ]
        header = Header(video, [c.id for c in own], [c.caption for c in own], MODEL, SECONDS, ENCODERS, "s", "p", "t")
        write_shard(shard_path(root / "features", video), header, random_features(2, generator))
        clips += own
    write_clips(root / "clips.tsv", clips)
    write_left_out(left_out_path(root / "clips.tsv"), [LeftOut("notes.txt", "no video file (.txt)")])
    make_base(root / "weights", encoders=False)
    folder = root / "exp" / "lora_checkpoints"
    folder.mkdir(parents=True)
    make_adapter(folder / "best_lora.pt", root / "weights")
    history = [
        {"step": 0, "validation/loss": 1.5},
        {"step": 5, "train/loss": 1.4},
        {"step": 10, "train/loss": 1, "validation/loss": 1.1},
    ]
    lines = [json.dumps(line) for line in history]
    (root / "exp" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1']))  # killed while writing
    return root


def command(root: Path, *more: str) -> list[str]:
    checkpoint = root / "exp" / "lora_checkpoints" / "best_lora.pt"
    return [
        "--lora_checkpoint",
        str(checkpoint),
        "--test_videos",
        str(root / "videos"),
        "--compare_original",
        "--clips",
        str(root / "clips.tsv"),
        "--features",
        str(root / "features"),
        "--weights",
        str(root / "weights"),
        "--steps",
        "2",
        "--device",
        "cpu",
        "--max_clips",
        "4",
        "--strengths",
        "0.5,1",
        *more,
    ]


@pytest.fixture(scope="module")
def done(place):
    assert evaluate_lora.main(command(place)) == 0
    return place / "exp"


@pytest.mark.slow
def test_metrics_json_keeps_its_contract(done):
    results = json.loads((done / "metrics.json").read_text())
    assert (results["schema"], results["clips"], results["videos"]) == (1, 4, 3)
    assert set(results["metrics"]) == {
        "velocity_loss",
        "mel_l1",
        "mel_l1_loud",
        "onset_f1",
        "onset_precision",
        "onset_recall",
        "onset_lag",
        "stft_distance",
        "loudness_difference",
        "centroid_difference",
        "bandwidth_difference",
        "near_silent",
    }
    for name, metric in results["metrics"].items():
        assert metric["difference"] == pytest.approx(metric["adapted"] - metric["base"])
        low, high = metric["interval"]
        assert low <= metric["difference"] <= high
        assert metric["better"] == ("higher" if name in {"onset_f1", "onset_precision", "onset_recall"} else "lower")
        assert metric["verdict"] in ("better", "worse", "cannot tell")
    loss = results["metrics"]["velocity_loss"]
    assert loss["base"] != loss["adapted"]
    codec = {name: metric["codec"] for name, metric in results["metrics"].items()}
    assert codec.pop("velocity_loss") is None and all(value is not None for value in codec.values())
    assert results["forgetting"] == {}


@pytest.mark.slow
def test_the_table_has_a_line_per_clip(done):
    with (done / "metrics.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    held_out = [row for row in rows if row["set"] == "held-out"]
    assert len(held_out) == 4
    results = json.loads((done / "metrics.json").read_text())["metrics"]
    by_video = {row["video"]: [] for row in held_out}
    for row in held_out:
        by_video[row["video"]].append(float(row["adapted_mel_l1"]))
    mean = np.mean([np.mean(values) for values in by_video.values()])
    assert mean == pytest.approx(results["mel_l1"]["adapted"], rel=1e-4)


@pytest.mark.slow
def test_the_report_stands_alone_and_names_everything(done):
    html = (done / "report" / "index.html").read_text()
    links = re.findall(r'(?:src|href|poster)="([^"#][^"]*)"', html)
    files = {link for link in links if not link.startswith("data:")}
    assert len(files) == 4 * 5  # the picture, the original, the codec's, both models'
    for file in files:
        assert (done / "report" / file).stat().st_size > 500
    assert not re.search(r"https?://(?!www\.w3\.org)", html)
    for text in ("notes.txt", "no video file (.txt)", "5 files found: 4 used, 1 left out"):
        assert text in html
    assert "a &lt;b&gt;ball&lt;/b&gt;" in html and "<b>ball" not in html
    assert html.count('class="clip"') == 4
    assert "What the model forgot was not measured" in html
    assert "<polyline" in html and "1.500 before, 1.100 at its lowest" in html


@pytest.mark.slow
def test_a_second_run_does_nothing_and_another_seed_does(done, place, capsys):
    report = done / "report" / "index.html"
    before = report.stat().st_mtime_ns
    evaluate_lora.main(command(place))
    assert "still valid" in capsys.readouterr().out
    assert report.stat().st_mtime_ns == before
    again = place / "again"
    evaluate_lora.main(command(place, "--output", str(again), "--seed", "1", "--max_clips", "3", "--samples", "2"))
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (done, again))
    assert (second["clips"], second["videos"]) == (3, 3)
    assert second["inputs"] != first["inputs"]
    assert second["metrics"].keys() - first["metrics"].keys() == {"duplicates", "diversity"}


@pytest.mark.slow
def test_what_is_done_is_kept_for_a_run_that_goes_on(place, done, monkeypatch):
    output = place / "interrupted"
    real = evaluate_lora.evaluate.__globals__["decode"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(evaluate_lora.evaluate.__globals__, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_lora.main(command(place, "--output", str(output)))
    assert not (output / "metrics.json").exists()
    monkeypatch.setitem(evaluate_lora.evaluate.__globals__, "decode", real)
    monkeypatch.setattr(running, "sample_latents", interrupted)
    evaluate_lora.main(command(place, "--output", str(output)))
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (done, output))
    assert first["metrics"] == second["metrics"]
    assert not (output / ".evaluation").exists()


@pytest.mark.slow
def test_an_evaluation_that_broke_off_leaves_no_valid_report_with_its_sounds(place, tmp_path, monkeypatch, capsys):
    short = ["--output", str(tmp_path), "--max_clips", "1", "--strengths", "", "--metrics", "mel_l1_loud"]
    evaluate_lora.main(command(place, *short))
    sound = tmp_path / "report" / "media" / "001_adapted.flac"
    before, last = sound.read_bytes(), sound.with_name("009_base.flac")
    last.write_bytes(b"of an evaluation of more clips")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setitem(evaluate_lora.evaluate.__globals__, "write_report", interrupted)
        evaluate_lora.main(command(place, *short, "--seed", "1"))
    assert sound.read_bytes() != before and not last.exists()
    capsys.readouterr()
    evaluate_lora.main(command(place, *short))
    assert "still valid" not in capsys.readouterr().out and sound.read_bytes() == before


@pytest.mark.slow
def test_results_are_not_valid_for_another_file_of_a_video_or_another_alpha(place, tmp_path):
    shutil.copytree(place / "videos", tmp_path / "videos")
    shutil.copytree(place / "exp" / "lora_checkpoints" / "best_lora", tmp_path / "best_lora")
    request = Request(tmp_path / "best_lora", tmp_path / "videos", place / "clips.tsv", place / "features", tmp_path)
    request = replace(request, weights=place / "weights")
    held_out = load_features(request.clips, request.features, "test", MODEL)

    def key() -> str:
        return inputs_key(request, model_spec(MODEL), held_out, None, {})

    check = Check(request, Search(MODEL), held_out.clips, "no judge")
    first, checked = key(), check.identity
    settings = tmp_path / "best_lora" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 99}))
    second = key()
    make_video(tmp_path / "videos" / VIDEOS[0], 9, 4.0)
    third = key()
    assert check.identity != checked
    weights = tmp_path / "best_lora" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_name("adapter_model.bin"))
    weights.unlink()
    assert len({first, second, third, key()}) == 4


@pytest.mark.slow
def test_what_was_forgotten_is_measured_on_other_videos(place, tmp_path):
    videos, base = tmp_path / "general", tmp_path / "weights"
    make_base(base)
    videos.mkdir()
    for seed in range(3):
        make_video(videos / f"{seed}.mp4", seed, 8.2)
        (videos / f"{seed}.txt").write_text("noise")
    where = ["--general_videos", str(videos), "--weights", str(base), "--output", str(tmp_path / "out")]
    evaluate_lora.main(command(place, *where, "--max_clips", "1", "--steps", "1"))
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    forgetting = results["forgetting"]
    assert set(forgetting) == set(results["metrics"])
    assert (forgetting["mel_l1"]["clips"], forgetting["mel_l1"]["videos"]) == (3, 3)
    assert results["metrics"]["mel_l1"]["verdict"] == "cannot tell" and results["metrics"]["mel_l1"]["interval"] is None
    html = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Too few held-out videos for a verdict" in html and "3 clips from 3 videos" in html


@pytest.mark.slow
def test_losses_and_sounds_do_not_depend_on_the_batch(place):
    sampler = load_sampler(MODEL, place / "weights")
    sampler.network.set_duration(SECONDS)
    features = load_features(place / "clips.tsv", place / "features", "test", MODEL).subset([0, 3, 5])
    one, many = (measure.Draws(samples=2, steps=2, batch=batch) for batch in (1, 5))
    losses = [measure.velocity_losses(sampler, features, draws, "loss") for draws in (one, many)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    latents = [measure.sample_latents(sampler, features, draws, "sounds") for draws in (one, many)]
    torch.testing.assert_close(*latents, rtol=1e-3, atol=1e-3)
    assert latents[0].shape[:2] == (3, 2)
    assert (latents[0][:, 0] - latents[0][:, 1]).abs().max() > 0.1


def test_the_loss_of_a_network_without_output_is_known(place):
    sampler = load_sampler(MODEL, place / "weights")
    sampler.network.set_duration(SECONDS)
    for parameter in sampler.network.final_layer.parameters():
        parameter.zero_()
    features = load_features(place / "clips.tsv", place / "features", "test", MODEL)
    losses = measure.velocity_losses(sampler, features, measure.Draws(), "loss")
    mean = features.mean - sampler.network.latent_mean
    expected = mean.square().mean((1, 2)) + features.std.square().mean((1, 2)) + 1  # E (x1 - x0)^2
    assert losses == pytest.approx(expected.tolist(), rel=0.1)


def test_grid_times_are_the_logit_normal_distribution():
    drawn = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).sigmoid()
    times = torch.tensor(measure.grid_times(64))
    for power in (1, 2, 3):
        assert times.pow(power).mean() == pytest.approx(drawn.pow(power).mean().item(), abs=5e-3)


def test_few_clips_are_spread_over_the_videos():
    videos = ["a"] * 4 + ["b"] + ["c"] * 3
    assert spread(videos, 4) == [0, 1, 4, 5]
    assert spread(videos, None) == list(range(8))


@pytest.mark.slow
def test_the_adapter_at_half_strength_is_one_of_half_its_alpha(place, tmp_path, monkeypatch):
    """In float32: a merged adapter and one beside the weights round otherwise."""
    monkeypatch.setattr(evaluate_lora, "fast_dtype", lambda device: torch.float32)
    checkpoint = place / "exp" / "lora_checkpoints" / "best_lora.pt"
    adapter = adapters.read_adapter(checkpoint)
    half = replace(adapter, lora=replace(adapter.lora, alpha=adapter.lora.alpha / 2))
    adapters.write_adapter(tmp_path / "half.pt", half)
    where = ["--lora_checkpoint", str(tmp_path / "half.pt"), "--output", str(tmp_path / "half"), "--strengths", ""]
    evaluate_lora.main(command(place, *where))
    evaluate_lora.main(command(place, "--output", str(tmp_path / "whole")))
    whole, halved = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "half"))
    assert list(whole["strengths"]) == ["0", "0.5", "1"] and halved["strengths"] == {}
    assert whole["recommended_strength"] in (None, 0.5, 1.0)
    for name, metric in halved["metrics"].items():
        tried = {strength: whole["strengths"][strength][name] for strength in whole["strengths"]}
        if not name.startswith("onset"):  # whether a peak is one may turn on the last digit
            assert tried["0.5"]["adapted"] == pytest.approx(metric["adapted"], rel=1e-3, abs=1e-3)
        assert tried["0"]["difference"] == 0
        assert tried["1"]["adapted"] == pytest.approx(whole["metrics"][name]["adapted"])
    assert len({whole["strengths"][strength]["mel_l1"]["adapted"] for strength in whole["strengths"]}) == 3
    assert "At which strength?" in (tmp_path / "whole" / "report" / "index.html").read_text()


@pytest.mark.slow
def test_clips_of_videos_that_were_trained_on_are_refused_or_marked(place, tmp_path):
    clips = read_clips(place / "clips.tsv")
    write_clips(tmp_path / "clips.tsv", [replace(clip, split="test") for clip in clips])
    where = ["--clips", str(tmp_path / "clips.tsv"), "--output", str(tmp_path / "out"), "--max_clips", "8"]
    with pytest.raises(DataError, match=r"2 held-out clips are of videos that were trained on \(four_0.0, four_2.0"):
        evaluate_lora.main(command(place, *where))
    evaluate_lora.main(command(place, *where, "--include-training", "--strengths", ""))
    html = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "2 of these 8 clips are of videos that the adapter was trained on" in html


def test_a_video_that_is_divided_by_time_is_known_and_not_refused(place, tmp_path):
    clips = [clip for clip in read_clips(place / "clips.tsv") if clip.video == "four.mp4"]
    write_clips(tmp_path / "clips.tsv", [clips[0], replace(clips[1], split="test")])
    adapter = adapters.read_adapter(place / "exp" / "lora_checkpoints" / "best_lora.pt")
    data = {"train": {"clips": 1, "videos": ["four.mp4"], "ids": [clips[0].id]}}
    adapters.write_adapter(tmp_path / "time.pt", replace(adapter, data=data))
    where = ["--clips", str(tmp_path / "clips.tsv"), "--output", str(tmp_path / "out"), "--strengths", ""]
    evaluate_lora.main(command(place, *where, "--lora_checkpoint", str(tmp_path / "time.pt")))
    assert "1 of these 1 clip are of videos" in (tmp_path / "out" / "report" / "index.html").read_text()


@pytest.mark.slow
def test_an_adapter_that_names_no_base_takes_it_from_the_command(place, tmp_path):
    adapter = adapters.read_adapter(place / "exp" / "lora_checkpoints" / "best_lora.pt")
    adapters.write_adapter(tmp_path / "a.pt", replace(adapter, base_model="", base_sha256=""))
    where = ["--lora_checkpoint", str(tmp_path / "a.pt"), "--output", str(tmp_path / "out"), "--max_clips", "1"]
    with pytest.raises(WeightsError, match=r"names no base model.*--model"):
        evaluate_lora.main(command(place, *where))
    with pytest.raises(WeightsError, match="made for tiny_16k, not for small_44k"):
        evaluate_lora.main(command(place, "--model", "small_44k", "--output", str(tmp_path / "out")))
    evaluate_lora.main(command(place, *where, "--model", MODEL))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["model"] == MODEL


@pytest.mark.slow
def test_tensorboard_has_the_results_at_the_adapters_step(done):
    events = EventAccumulator(str(done / "evaluation")).Reload()
    results = json.loads((done / "metrics.json").read_text())
    for name, metric in results["metrics"].items():
        for what in ("base", "adapted", "difference"):
            (scalar,) = events.Scalars(f"evaluation held-out/{name}/{what}")
            assert (scalar.step, scalar.value) == (10, pytest.approx(metric[what], rel=1e-5, abs=1e-6))
    tried = events.Scalars("strength in per cent/mel_l1")
    assert [scalar.step for scalar in tried] == [0, 50, 100]


def test_the_command_that_trains_again_states_the_settings():
    lora = LoRAConfig(rank=8, target_modules=["fused_blocks[*].ffn"], rank_pattern={"ffn": 4})
    config = TrainConfig(exp_id="x", model=MODEL, learning_rate=1e-3, preserve_base=0.5, lora=lora, amp=False)
    adapter = adapters.AdapterFile(lora, {}, MODEL, "", config=config.plain())
    request = Request(Path("a.pt"), Path("v"), Path("ö #1/c.tsv"), Path("f's ${x}"), Path("o"))
    text = dict(commands(request, model_spec(MODEL), adapter))["Train again"]
    mine = replace(request, weights=Path("w"), draws=measure.Draws(batch=3))
    told = dict(commands(mine, model_spec(MODEL), adapter))
    again = evaluate_lora.parser().parse_args(shlex.split(told["Make this report again"])[2:])
    assert (again.weights, again.batch_size) == (Path("w"), 3)
    assert all(told[title].endswith("--weights w") for title in told if title.startswith(("Extract", "Make a sound")))
    python, script, *overrides = shlex.split(text)
    assert (python, script) == ("python", "train_lora.py")
    again = compose(overrides).plain()
    places = {"exp_id": "again", "clips_tsv": "ö #1/c.tsv", "features_dir": "f's ${x}"}
    assert again == {**config.plain(), **places}


def test_a_folder_without_the_videos_is_named(place, tmp_path):
    with pytest.raises(DataError, match="3 held-out videos are not there"):
        evaluate_lora.main(command(place, "--test_videos", str(tmp_path), "--output", str(tmp_path / "out")))


def test_an_adapter_of_another_base_is_refused_before_any_work(place, tmp_path):
    make_base(tmp_path / "other", encoders=False)
    network = load_file(tmp_path / "other" / "network.safetensors")
    save_file({name: value + 1 for name, value in network.items()}, tmp_path / "other" / "network.safetensors")
    with pytest.raises(WeightsError, match="another file of tiny_16k"):
        evaluate_lora.main(command(place, "--weights", str(tmp_path / "other"), "--output", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_numbers_that_make_no_sense_are_refused(place):
    with pytest.raises(ConfigError, match="--samples 0"):
        evaluate_lora.main(command(place, "--samples", "0"))


@pytest.mark.parametrize("guidance", ["nan", "inf", "0.5"])
def test_a_guidance_that_is_none_is_refused_before_any_work(place, guidance):
    with pytest.raises(ConfigError, match="--guidance"):
        evaluate_lora.main(command(place, "--guidance", guidance))
