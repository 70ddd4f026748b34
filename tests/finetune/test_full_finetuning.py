"""A file of fully trained weights goes through the commands as an adapter does: training, evaluation, generation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from random_base import MODEL, make_base, make_video
from test_evaluate import ENCODERS, SECONDS, random_features

from mmaudio.data.clips import Clip, write_clips
from mmaudio.data.feature_store import Header, shard_path, write_shard
from mmaudio.lora.checkpoint import read_adapter

ROOT = Path(__file__).parents[2]
SPLITS = {"one.mp4": "train", "two.mp4": "val", "three.mp4": "test", "four.mp4": "test"}

pytestmark = pytest.mark.slow


def call(place, *words):
    """What a command prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Videos, clips, features and a random base, and what a short run of all weights wrote."""
    root = tmp_path_factory.mktemp("full")
    (root / "videos").mkdir()
    clips, generator = [], torch.Generator().manual_seed(2)
    for seed, (video, split) in enumerate(SPLITS.items()):
        make_video(root / "videos" / video, seed, SECONDS)
        own = [Clip(f"{video[:-4]}_0.0", video, 0.0, SECONDS, "a ball", split, -1.0, -20.0, 0.0)]
        header = Header(video, [own[0].id], ["a ball"], MODEL, SECONDS, ENCODERS, "s", "p", "t")
        write_shard(shard_path(root / "features", video), header, random_features(1, generator))
        clips += own
    write_clips(root / "clips.tsv", clips)
    make_base(root / "weights")
    said = call(
        root,
        ROOT / "train_lora.py",
        "exp_id=full",
        f"model={MODEL}",
        "clips_tsv=clips.tsv",
        "features_dir=features",
        "weights=weights",
        "device=cpu",
        "lora.enabled=false",
        "learning_rate=1e-3",
        "preset=quick",
        "batch_size=2",
        "max_steps=3",
        "warmup_steps=0",
        "eval_every=3",
        "logging.sample_every=0",
    )
    assert "adapter:    none, every weight of the network is trained" in said
    return root


def checkpoint(place, name="last_lora.pt"):
    return place / "output" / "full" / "lora_checkpoints" / name


def test_the_file_says_what_it_is(place):
    file = read_adapter(checkpoint(place))
    assert not file.lora.enabled and file.step == 3 and file.base_model == MODEL


def test_it_is_evaluated_as_an_adapter_is(place):
    call(
        place,
        ROOT / "evaluate_lora.py",
        "--lora_checkpoint",
        checkpoint(place),
        "--test_videos",
        "videos",
        "--compare_original",
        "--clips",
        "clips.tsv",
        "--features",
        "features",
        "--weights",
        "weights",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--strengths",
        "0.5",
    )
    results = json.loads((place / "output" / "full" / "metrics.json").read_text())
    assert (results["schema"], results["clips"], results["videos"]) == (1, 2, 2)
    found = results["metrics"]["velocity_loss"]
    assert found["base"] != found["adapted"] and found["difference"] == pytest.approx(found["adapted"] - found["base"])
    assert results["forgetting"]["velocity_loss"]["base"] != results["forgetting"]["velocity_loss"]["adapted"]
    assert (place / "output" / "full" / "report" / "index.html").is_file()


def sound(path):
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]).astype(float)


def test_it_generates_as_an_adapter_does(place):
    video, common = place / "videos" / "three.mp4", ["--model", MODEL, "--weights", "weights", "--steps", "2"]
    made = {}
    for name, more in {
        "base": [],
        "off": ["--adapter", checkpoint(place), "--strength", "0"],
        "full": ["--adapter", checkpoint(place)],
        "half": ["--adapter", checkpoint(place), "--strength", "0.5"],
    }.items():
        call(place, "-m", "mmaudio.generation", "--video", video, *common, "--device", "cpu", "--output", name, *more)
        made[name] = sound(place / name / "three.flac")
    assert np.array_equal(made["base"], made["off"])
    far, near = (np.abs(made[name] - made["base"]).mean() for name in ("full", "half"))
    assert 0 < near < far
