"""The whole evaluation on generated videos, random weights and a random adapter: the files that a user gets."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from evaluation_inputs import SECONDS, evaluate_arguments
from helpers import ROOT
from random_model import MODEL, write_noise_video, write_random_weights
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate_lora
from mmaudio.data.clip_table import read_clips, write_clips
from mmaudio.data.feature_store import load_features
from mmaudio.errors import DataError
from mmaudio.evaluation import generic_prompts, model_runs
from mmaudio.evaluation.config import EvaluationConfig, SamplingConfig
from mmaudio.evaluation.inference import sample_latents, velocity_losses
from mmaudio.evaluation.inputs import inputs_key
from mmaudio.evaluation.sync_check import SyncCheck
from mmaudio.generation.sampler import load_sampler
from mmaudio.lora import checkpoint as adapters
from mmaudio.metrics.pretrained_metrics import ModelSearch
from mmaudio.metrics.registry import METRICS, PRIMARY
from mmaudio.model.spec import model_spec
from mmaudio.report import fold_evaluation
from mmaudio.utils import heartbeat

VIDEOS = ("one.mp4", "two.mp4", "three.mp4", "four.mp4")


@pytest.fixture(scope="module")
def results_folder(root):
    assert evaluate_lora.main(evaluate_arguments(root)) == 0
    return root / "exp"


@pytest.mark.slow
def test_metrics_json_keeps_its_contract(results_folder):
    results = json.loads((results_folder / "metrics.json").read_text())
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
    prompts = results["generic_prompts"]
    assert prompts["prompts"] == len(prompts["captions"]) == 4 and prompts["clap"] is None
    assert prompts["mel"]["share"] == pytest.approx(prompts["mel"]["distance"] / prompts["mel"]["seed_distance"])
    assert prompts["mel"]["interval"][0] <= prompts["mel"]["share"] <= prompts["mel"]["interval"][1]


@pytest.mark.slow
def test_the_table_has_a_line_per_clip(results_folder):
    with (results_folder / "metrics.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    held_out = [row for row in rows if row["set"] == "held-out"]
    assert len(held_out) == 4
    results = json.loads((results_folder / "metrics.json").read_text())["metrics"]
    by_video = {row["video"]: [] for row in held_out}
    for row in held_out:
        by_video[row["video"]].append(float(row["adapted_mel_l1"]))
    mean = np.mean([np.mean(values) for values in by_video.values()])
    assert mean == pytest.approx(results["mel_l1"]["adapted"], rel=1e-4)


@pytest.mark.slow
def test_the_report_stands_alone_and_names_everything(results_folder):
    html = (results_folder / "report" / "index.html").read_text()
    links = re.findall(r'(?:src|href|poster)="([^"#][^"]*)"', html)
    files = {link for link in links if not link.startswith("data:")}
    assert len(files) == 4 * 5  # the picture, the original, the codec's, both models'
    for file in files:
        assert (results_folder / "report" / file).stat().st_size > 500
    assert not re.search(r"https?://(?!www\.w3\.org)", html)
    for text in ("notes.txt", "no video file (.txt)", "5 files found: 4 used, 1 left out"):
        assert text in html
    assert "a &lt;b&gt;ball&lt;/b&gt;" in html and "<b>ball" not in html
    assert html.count('class="clip"') == 4
    results = json.loads((results_folder / "metrics.json").read_text())
    assert unescape(html).count(results["generic_prompts"]["sentence"]) == 2, "at the top, and above the numbers"
    assert "Whether other audio is worse was not measured: no videos" in html
    assert "<polyline" in html and "1.500 before, 1.100 at its lowest" in html


@pytest.mark.slow
def test_a_second_evaluation_waits_for_the_first(results_folder, root):
    hold = "import pathlib, sys; from mmaudio.utils.locks import FileLocks; "
    hold += "print(FileLocks(pathlib.Path(sys.argv[1])).acquire('evaluation'), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(results_folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            thread = threading.Thread(target=evaluate_lora.main, args=[evaluate_arguments(root)])
            thread.start()
            while thread.is_alive() and "another process evaluates into" not in printed.getvalue():
                time.sleep(0.01)
            assert "another process evaluates into" in printed.getvalue() and "still valid" not in printed.getvalue()
            holder.stdin.close()
            thread.join()
    assert "still valid" in printed.getvalue()


@pytest.mark.slow
def test_a_second_run_does_nothing_and_another_seed_does(results_folder, root, capsys):
    report = results_folder / "report" / "index.html"
    before = report.stat().st_mtime_ns
    evaluate_lora.main(evaluate_arguments(root))
    assert "still valid" in capsys.readouterr().out
    assert report.stat().st_mtime_ns == before
    with (results_folder / "metrics.jsonl").open("a") as history:
        history.write('\n{"step": 15, "train/loss": 0.9, "validation/loss": 1.05}\n')
    results = (results_folder / "metrics.json").read_bytes()
    evaluate_lora.main(evaluate_arguments(root))
    assert "still valid, its sections on training and data are made anew" in capsys.readouterr().out
    assert "1.500 before, 1.050 at its lowest" in report.read_text()
    assert (results_folder / "metrics.json").read_bytes() == results
    again = root / "again"
    other = ["--seed", "1", "--max_clips", "3", "--samples", "2", "--report_clips", "2"]
    evaluate_lora.main(evaluate_arguments(root, "--output", str(again), *other))
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (results_folder, again))
    assert (second["clips"], second["videos"]) == (3, 3)
    assert second["inputs"] != first["inputs"]
    assert second["metrics"].keys() - first["metrics"].keys() == {"duplicates", "diversity"}
    html = (again / "report" / "index.html").read_text()
    assert html.count('class="clip"') == 2 and html.count("<tr data-number=") == 3, "all are in the table"
    assert "Of the 3 clips, 2 are played here" in html
    assert len(list((again / "report" / "media").iterdir())) == 2 * 5


@pytest.mark.slow
def test_every_long_phase_says_what_runs_and_how_far(root, results_folder, monkeypatch, capfd):
    monkeypatch.setattr(heartbeat, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(heartbeat, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(heartbeat, "BRIEF_SECONDS", 0.0)
    evaluate_lora.main(evaluate_arguments(root, "--output", str(root / "phases"), "--strengths", ""))
    printed = capfd.readouterr().out
    label = "adapted model, held-out clips"
    assert re.search(rf"^{label}: loss: \d+/32, ", printed, re.MULTILINE)
    assert re.search(rf"^{label}: sampling, solver steps of clips: \d/8, ", printed, re.MULTILINE)
    assert "base model, held-out clips" not in printed, "the first evaluation has sampled it"
    first, second = (json.loads((root / name / "metrics.json").read_text()) for name in ("exp", "phases"))
    assert first["metrics"] == second["metrics"] and first["inputs"] != second["inputs"]
    assert re.search(
        r"^decoding and measuring, by clip: \d/4, ([\d.]+/s, \d+ s left|\d+ s so far)$", printed, re.MULTILINE
    )
    assert "writing the report: " in printed


@pytest.mark.slow
def test_an_interrupted_evaluation_resumes_from_its_latents(root, results_folder, monkeypatch):
    output = root / "interrupted"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setitem(evaluate_lora.evaluate.__globals__, "measure_clips", interrupted)
        evaluate_lora.main(evaluate_arguments(root, "--output", str(output)))
    assert not (output / "metrics.json").exists()
    for module in (model_runs, generic_prompts):
        monkeypatch.setattr(module, "sample_latents", interrupted)
    evaluate_lora.main(evaluate_arguments(root, "--output", str(output)))
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (results_folder, output))
    assert first["metrics"] == second["metrics"] and first["generic_prompts"] == second["generic_prompts"]
    assert not (output / ".evaluation").exists()


ENDLESS = """
import itertools, runpy, sys
from mmaudio.evaluation import model_runs
sample = model_runs.sample_latents
def sample_again_and_again(sampler, features, config, label):
    for _ in itertools.count() if label.startswith("adapted model") else range(1):
        latents = sample(sampler, features, config, label)
    return latents
model_runs.sample_latents = sample_again_and_again
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The command, whose adapted model samples until a signal comes: however late that is, it comes amid the sampling."""


@pytest.mark.slow
def test_a_signal_amid_the_sampling_is_one_line_and_a_later_run_gives_the_same(root, results_folder):
    output = root / "signalled"
    arguments = evaluate_arguments(root, "--output", str(output), "--strengths", "")
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(ROOT / "evaluate_lora.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        while not list(output.glob(".evaluation/*/base-held-out.safetensors")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate()[1]
    assert errors == "stopped by SIGTERM; the same command continues from here\n"
    assert process.returncode == 128 + signal.SIGTERM and not (output / "metrics.json").exists()
    assert evaluate_lora.main(arguments) == 0
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (results_folder, output))
    assert first["metrics"] == second["metrics"]


@pytest.mark.slow
def test_an_interrupted_evaluation_leaves_no_valid_report_with_mixed_media(root, tmp_path, monkeypatch, capsys):
    short = ["--output", str(tmp_path), "--max_clips", "1", "--strengths", "", "--metrics", "mel_l1_loud"]
    evaluate_lora.main(evaluate_arguments(root, *short))
    sound = tmp_path / "report" / "media" / "001_adapted.flac"
    before, last = sound.read_bytes(), sound.with_name("009_base.flac")
    last.write_bytes(b"of an evaluation of more clips")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(fold_evaluation, "write_report", interrupted)
        evaluate_lora.main(evaluate_arguments(root, *short, "--seed", "1"))
    assert sound.read_bytes() != before and not last.exists()
    capsys.readouterr()
    evaluate_lora.main(evaluate_arguments(root, *short))
    assert "still valid" not in capsys.readouterr().out and sound.read_bytes() == before


@pytest.mark.slow
def test_results_are_not_valid_for_another_file_of_a_video_or_another_alpha(root, tmp_path):
    shutil.copytree(root / "videos", tmp_path / "videos")
    shutil.copytree(root / "exp" / "lora_checkpoints" / "best_lora", tmp_path / "best_lora")
    config = EvaluationConfig(
        tmp_path / "best_lora", tmp_path / "videos", root / "clips.tsv", root / "features", tmp_path
    )
    config = replace(config, weights=root / "weights")
    held_out = load_features(config.clips_tsv, config.features_dir, "test", MODEL)

    def key() -> str:
        return inputs_key(config, model_spec(MODEL), held_out, None, {})

    check = SyncCheck(config, ModelSearch(MODEL), held_out.clips, "no classifier")
    first, identity = key(), check.identity
    settings = tmp_path / "best_lora" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 99}))
    second = key()
    write_noise_video(tmp_path / "videos" / VIDEOS[0], 9, 4.0)
    third = key()
    assert check.identity != identity
    weights = tmp_path / "best_lora" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_name("adapter_model.bin"))
    weights.unlink()
    assert len({first, second, third, key()}) == 4


@pytest.mark.slow
def test_forgetting_is_measured_on_other_videos(root, tmp_path):
    videos, base = tmp_path / "general", tmp_path / "weights"
    write_random_weights(base)
    videos.mkdir()
    for seed in range(3):
        write_noise_video(videos / f"{seed}.mp4", seed, 8.2)
        (videos / f"{seed}.txt").write_text("noise")
    where = ["--general_videos", str(videos), "--weights", str(base), "--output", str(tmp_path / "out")]
    evaluate_lora.main(evaluate_arguments(root, *where, "--max_clips", "1", "--steps", "1", "--strengths", ""))
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    forgetting = results["forgetting"]
    assert set(forgetting) == set(results["metrics"])
    assert (forgetting["mel_l1"]["clips"], forgetting["mel_l1"]["videos"]) == (3, 3)
    assert results["metrics"]["mel_l1"]["verdict"] == "cannot tell" and results["metrics"]["mel_l1"]["interval"] is None
    html = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Too few held-out videos for a verdict" in html and "3 clips from 3 videos" in html


@pytest.mark.slow
def test_losses_and_audio_do_not_depend_on_the_batch_size(root):
    sampler = load_sampler(MODEL, root / "weights")
    sampler.network.set_duration(SECONDS)
    features = load_features(root / "clips.tsv", root / "features", "test", MODEL).subset([0, 3, 5])
    configs = [SamplingConfig(samples=2, num_steps=2, batch_size=batch_size) for batch_size in (1, 5)]
    losses = [velocity_losses(sampler, features, config, "loss") for config in configs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    latents = [sample_latents(sampler, features, config, "sampling") for config in configs]
    torch.testing.assert_close(*latents, rtol=1e-3, atol=1e-3)
    assert latents[0].shape[:2] == (3, 2)
    assert (latents[0][:, 0] - latents[0][:, 1]).abs().max() > 0.1


@pytest.mark.slow
def test_half_strength_equals_half_alpha(root, tmp_path, monkeypatch):
    """In float32: a merged adapter and one beside the weights round otherwise."""
    monkeypatch.setattr(evaluate_lora, "fast_dtype", lambda device: torch.float32)
    checkpoint = root / "exp" / "lora_checkpoints" / "best_lora.pt"
    adapter = adapters.read_adapter(checkpoint)
    half = replace(adapter, lora=replace(adapter.lora, alpha=adapter.lora.alpha / 2))
    adapters.write_adapter(tmp_path / "half.pt", half)
    where = ["--lora_checkpoint", str(tmp_path / "half.pt"), "--output", str(tmp_path / "half"), "--strengths", ""]
    evaluate_lora.main(evaluate_arguments(root, *where))
    evaluate_lora.main(evaluate_arguments(root, "--output", str(tmp_path / "whole")))
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
def test_clips_of_videos_that_were_trained_on_are_refused_or_marked(root, tmp_path):
    clips = read_clips(root / "clips.tsv")
    write_clips(tmp_path / "clips.tsv", [replace(clip, split="test") for clip in clips])
    where = ["--clips", str(tmp_path / "clips.tsv"), "--output", str(tmp_path / "out"), "--max_clips", "8"]
    with pytest.raises(DataError, match=r"2 held-out clips are of videos that were trained on \(four_0.0, four_2.0"):
        evaluate_lora.main(evaluate_arguments(root, *where))
    few = ["--strengths", "", "--steps", "1", "--metrics", "mel_l1"]
    evaluate_lora.main(evaluate_arguments(root, *where, "--include-training", *few))
    html = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "2 of these 8 clips are of videos that the adapter was trained on" in html


@pytest.mark.slow
def test_a_video_divided_in_time_is_not_refused(root, tmp_path):
    clips = [clip for clip in read_clips(root / "clips.tsv") if clip.video == "four.mp4"]
    write_clips(tmp_path / "clips.tsv", [clips[0], replace(clips[1], split="test")])
    adapter = adapters.read_adapter(root / "exp" / "lora_checkpoints" / "best_lora.pt")
    data = {"train": {"clips": 1, "videos": ["four.mp4"], "ids": [clips[0].id]}}
    adapters.write_adapter(tmp_path / "time.pt", replace(adapter, data=data))
    where = ["--clips", str(tmp_path / "clips.tsv"), "--output", str(tmp_path / "out"), "--strengths", ""]
    where += ["--steps", "1", "--metrics", "mel_l1"]
    evaluate_lora.main(evaluate_arguments(root, *where, "--lora_checkpoint", str(tmp_path / "time.pt")))
    assert "1 of these 1 clip are of videos" in (tmp_path / "out" / "report" / "index.html").read_text()


@pytest.mark.slow
def test_tensorboard_has_the_results_at_the_adapters_step(results_folder):
    events = EventAccumulator(str(results_folder / "evaluation")).Reload()
    results = json.loads((results_folder / "metrics.json").read_text())
    verdict = [name for name in results["metrics"] if METRICS[name].in_verdict]
    for name in verdict:
        for what in ("base", "adapted"):
            (scalar,) = events.Scalars(f"evaluation/{name}/{what}")
            assert (scalar.step, scalar.value) == (
                10,
                pytest.approx(results["metrics"][name][what], rel=1e-5, abs=1e-6),
            )
    tags = events.Tags()["scalars"]
    assert len(tags) <= 2 * len(verdict) + 5 and len(verdict) <= 5, "what a person reads"
    tried = events.Scalars(f"strength in per cent/evaluation/{PRIMARY}")
    assert [scalar.step for scalar in tried] == [0, 50, 100]
