"""Evaluation streams its clips: many take no more memory than few."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_base import MODEL, make_base, make_video
from test_evaluate import make_adapter
from test_train_lora import ROOT

from mmaudio.data.clips import Clip, write_clips
from mmaudio.data.feature_store import VERSION, Features, Header, encoder_names, shard_path, write_shard
from mmaudio.model.spec import lengths, model_spec

SECONDS = 8.0
PER_VIDEO = 4
KEPT = 1.0
"""Megabytes that a clip may add: four spectrograms and a still for the page; its five sounds alone are 2.6."""
SCRIPT = """
import resource, sys
import torch
import evaluate_lora
from mmaudio.evaluation import general
torch.set_num_threads(1)
general.SHIPPED = "none"
evaluate_lora.main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
"""


def features(generator: torch.Generator) -> Features:
    spec = model_spec(MODEL)
    size, network = lengths(spec.codec, SECONDS), spec.network
    shapes = (
        (size.latent, network.latent_dim),
        (size.latent, network.latent_dim),
        (size.clip, network.clip_dim),
        (size.sync, network.sync_dim),
        (network.text_tokens, network.text_dim),
    )
    return Features(*(0.1 * torch.randn(PER_VIDEO, *shape, generator=generator).abs() for shape in shapes))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """48 held-out clips of 12 videos, a base and an adapter."""
    root = tmp_path_factory.mktemp("streaming")
    make_base(root / "weights", encoders=False)
    make_adapter(root / "a.pt", root / "weights")
    (root / "videos").mkdir()
    make_video(root / "videos" / "0.mp4", 0, SECONDS * PER_VIDEO + 0.2)
    rows = []
    for number in range(12):
        video = f"{number}.mp4"
        if number:
            os.link(root / "videos" / "0.mp4", root / "videos" / video)
        own = [
            Clip(f"{number}_{n}", video, SECONDS * n, SECONDS * (n + 1), "", "test", -1.0, -20.0, 0.0)
            for n in range(PER_VIDEO)
        ]
        encoders = {part: f"{name}:0" for part, name in encoder_names(model_spec(MODEL)).items()}
        header = Header(
            video, [c.id for c in own], [c.caption for c in own], MODEL, SECONDS, encoders, "s", "p", "t", "", VERSION
        )
        write_shard(shard_path(root / "features", video), header, features(torch.Generator().manual_seed(number)))
        rows += own
    write_clips(root / "clips.tsv", rows)
    return root


def peak(place: Path, clips: int) -> float:
    """Megabytes that evaluating so many clips takes at most."""
    output = place / str(clips)
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        "--lora_checkpoint",
        str(place / "a.pt"),
        "--test_videos",
        str(place / "videos"),
        "--clips",
        str(place / "clips.tsv"),
        "--features",
        str(place / "features"),
        "--weights",
        str(place / "weights"),
        "--output",
        str(output),
        "--steps",
        "1",
        "--strengths",
        "",
        "--device",
        "cpu",
        "--max_clips",
        str(clips),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "metrics.json").read_text())["clips"] == clips
    return float(done.stdout.split()[-1])


@pytest.mark.slow
def test_many_clips_take_little_more_memory_than_few(place):
    few, many = peak(place, 12), peak(place, 48)
    assert many - few < KEPT * (48 - 12), f"{few:.0f} MB for 12 clips, {many:.0f} MB for 48"
