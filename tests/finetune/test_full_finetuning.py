"""A file of fully trained weights goes through the commands as an adapter does: training, evaluation, generation."""

import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from evaluation_inputs import ENCODERS, SECONDS, random_features
from helpers import ROOT, run_script
from random_model import MODEL, write_noise_video, write_random_weights

from mmaudio.data.clip_table import write_clips
from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import Header, shard_path, write_shard
from mmaudio.generation import __main__ as generation
from mmaudio.lora.checkpoint import read_adapter

SPLITS = {"one.mp4": "train", "two.mp4": "val", "three.mp4": "test", "four.mp4": "test"}

pytestmark = pytest.mark.slow


def call(folder, *words):
    """What a command prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, clips, features and a random base, and what a short run of all weights wrote."""
    root = tmp_path_factory.mktemp("full")
    (root / "videos").mkdir()
    clips, generator = [], torch.Generator().manual_seed(2)
    for seed, (video, split) in enumerate(SPLITS.items()):
        write_noise_video(root / "videos" / video, seed, SECONDS)
        video_clips = [Clip(f"{video[:-4]}_0.0", video, 0.0, SECONDS, "a ball", split, -1.0, -20.0, 0.0)]
        header = Header(video, [video_clips[0].id], ["a ball"], MODEL, SECONDS, ENCODERS, "s", "p", "t")
        write_shard(shard_path(root / "features", video), header, random_features(1, generator))
        clips += video_clips
    write_clips(root / "clips.tsv", clips)
    write_random_weights(root / "weights")
    output = call(
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
        "preserve_base=0",
        "batch_size=2",
        "max_steps=3",
        "warmup_steps=0",
        "eval_every=3",
        "logging.sample_every=0",
    )
    assert "adapter:    none, every weight of the network is trained" in output
    return root


def checkpoint(folder, name="last_lora.pt"):
    return folder / "output" / "full" / "lora_checkpoints" / name


def test_the_file_describes_itself(folder):
    file = read_adapter(checkpoint(folder))
    assert not file.lora.enabled and file.step == 3 and file.base_model == MODEL


def test_a_fully_trained_model_is_evaluated_like_an_adapter(folder):
    (folder / "general").mkdir()
    write_noise_video(folder / "general" / "five.mp4", 5, 8.2)
    paths = {"clips": "clips.tsv", "features": "features", "weights": "weights", "general_videos": "general"}
    flags = [word for name, path in paths.items() for word in (f"--{name}", folder / path)]
    flags += ["--lora_checkpoint", checkpoint(folder), "--test_videos", folder / "videos", "--compare_original"]
    assert run_script(ROOT / "evaluate_lora.py", *flags, "--steps", "2", "--device", "cpu", "--strengths", "0.5") == 0
    results = json.loads((folder / "output" / "full" / "metrics.json").read_text())
    assert (results["schema"], results["clips"], results["videos"]) == (1, 2, 2)
    velocity_loss = results["metrics"]["velocity_loss"]
    assert velocity_loss["base"] != velocity_loss["adapted"] and velocity_loss["difference"] == pytest.approx(
        velocity_loss["adapted"] - velocity_loss["base"]
    )
    assert results["forgetting"]["velocity_loss"]["base"] != results["forgetting"]["velocity_loss"]["adapted"]
    assert (folder / "output" / "full" / "report" / "index.html").is_file()


def read_audio(path):
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)]).astype(float)


def test_a_fully_trained_model_generates_like_an_adapter(folder):
    common = ["--video", str(folder / "videos" / "three.mp4"), "--model", MODEL, "--weights", str(folder / "weights")]
    common += ["--steps", "2", "--device", "cpu", "--output"]
    adapter, waveforms = ["--adapter", str(checkpoint(folder))], {}
    for name, flags in {
        "base": [],
        "off": [*adapter, "--strength", "0"],
        "full": adapter,
        "half": [*adapter, "--strength", "0.5"],
    }.items():
        assert generation.main([*common, str(folder / name), *flags]) == 0
        waveforms[name] = read_audio(folder / name / "three.flac")
    assert np.array_equal(waveforms["base"], waveforms["off"])
    far, near = (np.abs(waveforms[name] - waveforms["base"]).mean() for name in ("full", "half"))
    assert 0 < near < far
