"""Training and evaluation with folds, on small videos and random weights: every file that a user gets."""

import json
import re

import pytest
import torch
from evaluation_inputs import ENCODERS, SECONDS, random_features
from random_model import MODEL, write_noise_video, write_random_weights

import evaluate_lora
from mmaudio.config import compose
from mmaudio.data.clip_table import write_clips
from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import Header, shard_path, write_shard
from mmaudio.errors import ConfigError, DataError
from mmaudio.evaluation.fold_results import read_fold_results
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.fold_training import train_with_folds
from mmaudio.report.fold_evaluation import fold_share
from mmaudio.report.summary import read_summary

VIDEOS = ("one.mp4", "two.mp4", "three.mp4")
pytestmark = pytest.mark.slow


def write_data(root):
    """Three videos with two clips each, features and weights, as the earlier stages leave them."""
    generator = torch.Generator().manual_seed(2)
    (root / "videos").mkdir()
    rows = []
    for seed, video in enumerate(VIDEOS):
        write_noise_video(root / "videos" / video, seed, 2 * SECONDS)
        clips = [
            Clip(f"{video[:-4]}_{start:g}", video, start, start + SECONDS, "a ball", "train", -1.0, -20.0, 0.0)
            for start in (0.0, SECONDS)
        ]
        ids, captions = [clip.id for clip in clips], [clip.caption for clip in clips]
        header = Header(video, ids, captions, MODEL, SECONDS, ENCODERS, "s", "p", "t")
        write_shard(shard_path(root / "features", video), header, random_features(2, generator))
        rows += clips
    write_clips(root / "clips.tsv", rows)
    write_random_weights(root / "weights", encoders=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory, nothing_ships, brief_vocoder):
    """An experiment `exp` that was trained with three folds."""
    root = tmp_path_factory.mktemp("folds")
    write_data(root)
    settings = {
        "exp_id": "exp",
        "model": MODEL,
        "clips_tsv": root / "clips.tsv",
        "features_dir": root / "features",
        "weights": root / "weights",
        "output_dir": root,
        "preset": "quick",
        "preserve_base": 0,
        "batch_size": 2,
        "max_steps": 2,
        "warmup_steps": 1,
        "eval_every": 1,
        "ema_decay": 0,
        "logging.sample_every": 0,
        "lora.rank": 2,
        "folds": "on",
    }
    config = compose([f"{name}={value}" for name, value in settings.items()])
    train_with_folds(config, torch.device("cpu"), Distributed())
    return root


def arguments(root, *extra):
    paths = {
        "--lora_checkpoint": root / "exp",
        "--test_videos": root / "videos",
        "--clips": root / "clips.tsv",
        "--features": root / "features",
        "--weights": root / "weights",
        "--device": "cpu",
        "--steps": 1,
        "--strengths": "0.5",
    }
    return [*(str(text) for pair in paths.items() for text in pair), *extra]


@pytest.fixture(scope="module")
def experiment(root):
    """The folder of the experiment, evaluated: one fold alone first, as on a cluster, then all."""
    assert evaluate_lora.main(arguments(root, "--fold", "2")) == 0
    assert not (root / "exp" / "metrics.json").exists() and not (root / "exp/folds/1/metrics.json").exists()
    assert evaluate_lora.main(arguments(root)) == 0
    return root / "exp"


@pytest.mark.parametrize(("limit", "shares"), [(24, [5, 5, 5, 5, 4]), (5, [1] * 5), (2, [1] * 5)])
def test_folds_share_a_number_of_clips(limit, shares):
    assert [fold_share(limit, number, 5) for number in range(1, 6)] == shares


def test_the_experiment_has_one_verdict_over_all_videos(experiment):
    pooled = json.loads((experiment / "metrics.json").read_text())
    assert (pooled["clips"], pooled["videos"], pooled["folds"]) == (6, 3, 3)
    assert pooled["adapter"] == str(experiment / "lora_checkpoints" / "best_lora.pt")
    assert pooled["metrics"]["mel_l1_loud"]["videos"] == 3 and pooled["metrics"]["mel_l1_loud"]["interval"]
    assert set(pooled["strengths"]) == {"0", "0.5", "1"} and pooled["recommendation"]
    rows = (experiment / "metrics.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[2] for row in rows] == [video for video in VIDEOS for _ in range(2)]
    by_id = {row.split("\t")[1]: row for row in rows}
    for number in (1, 2, 3):
        for row in (experiment / f"folds/{number}/metrics.tsv").read_text().splitlines()[1:]:
            assert by_id.pop(row.split("\t")[1]) == row, "the values are those of the fold that held the video out"
    assert not by_id
    assert list((experiment / "evaluation").glob("events.*"))


def test_the_report_says_whose_verdict_it_is_and_plays_every_clip(experiment):
    page = (experiment / "report" / "index.html").read_text()
    assert "This is a verdict of the recipe" in page and "in 3 folds" in page and "1 + K / (K - 1)" in page
    assert "Too few" not in page and "also chose the best step" not in page
    media = set(re.findall(r'"(media/[^"]+)"', page))
    assert len(media) == 6 * 5 and all((experiment / "report" / name).is_file() for name in media)
    assert all(f"held out in fold {number}" in page for number in (1, 2, 3))
    again = re.search(r"python evaluate_lora.py [^<]*", page).group()
    assert f"--lora_checkpoint {experiment} " in again
    assert "folds=3" in re.search(r"python train_lora.py [^<]*", page).group()
    generate = re.search(r"python -m mmaudio.generation [^<]*", page).group()
    assert f"--adapter {experiment}/lora_checkpoints/best_lora.pt" in generate


def test_the_terminal_names_the_recipe(experiment):
    summary = read_summary(experiment / "metrics.json")
    assert list(summary.lines())[:3] == ["Verdict", "Forgot", "Folds"]
    assert "each of 3 videos was judged with an adapter that was trained without it" in summary.lines()["Folds"]


def test_what_is_valid_is_not_done_again(experiment, root, capsys):
    times = {path: path.stat().st_mtime_ns for path in experiment.rglob("*.*")}
    assert evaluate_lora.main(arguments(root)) == 0
    assert "still valid, nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in experiment.rglob("*.*")} == times


def test_a_fold_whose_results_are_gone_is_evaluated_again_to_the_same(experiment, root):
    before = {path: path.read_bytes() for path in experiment.rglob("metrics.*") if path.suffix in (".json", ".tsv")}
    (experiment / "folds" / "2" / "clips.json.gz").unlink()
    (experiment / "metrics.json").unlink()
    assert evaluate_lora.main(arguments(root)) == 0
    assert {path: path.read_bytes() for path in before} == before
    results = read_fold_results(experiment / "folds" / "2" / "clips.json.gz")
    assert results.inputs_key == json.loads((experiment / "folds/2/metrics.json").read_text())["inputs"]


def test_what_does_not_go_with_folds_is_one_line(root, tmp_path):
    for extra, message in (
        (["--strength", "0.5"], "without --strength or a second adapter"),
        (["--check-data"], "--check-data: it is of the training clips of one adapter, such as --lora_checkpoint"),
        (["--fold", "4"], "--fold 4: --lora_checkpoint names an experiment with folds 1 to 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate_lora.main(arguments(root, *extra))
    adapter = root / "exp" / "lora_checkpoints" / "best_lora.pt"
    with pytest.raises(ConfigError, match="names an experiment with no folds"):
        evaluate_lora.main([*arguments(root)[2:], "--lora_checkpoint", str(adapter), "--fold", "1"])
    moved = root / "exp" / "folds" / "3" / "lora_checkpoints"
    moved.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"1 of its 3 folds' adapters .* not trained yet"):
        evaluate_lora.main(arguments(root))
    (tmp_path / "moved").rename(moved)
