"""Evaluation streams its clips: many take no more memory than few."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluation_inputs import write_random_adapter
from helpers import ROOT
from random_model import MODEL, write_noise_video, write_random_weights

from mmaudio.data.clip_table import write_clips
from mmaudio.data.clips import Clip
from mmaudio.data.feature_set import Features
from mmaudio.data.feature_store import VERSION, Header, encoder_names, shard_path, write_shard
from mmaudio.model.spec import compute_lengths, model_spec

SECONDS = 8.0
PER_VIDEO = 4
CLIP_MEGABYTES = 1.0
"""Megabytes that a clip may add: four spectrograms and a still for the page; its five sounds alone are 2.6."""
SCRIPT = """
import resource, sys
import torch
import evaluate_lora
from mmaudio.features.griffin_lim import GriffinLim
from mmaudio.weights import store
GriffinLim.__init__.__defaults__ = (2,)  # iterations: nobody listens
torch.set_num_threads(1)
store.GENERAL_VIDEOS_FOLDER = "none"
evaluate_lora.main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
"""


def features(generator: torch.Generator) -> Features:
    spec = model_spec(MODEL)
    size, network = compute_lengths(spec.codec, SECONDS), spec.network
    shapes = (
        (size.latent_tokens, network.latent_dim),
        (size.latent_tokens, network.latent_dim),
        (size.clip_tokens, network.clip_dim),
        (size.sync_tokens, network.sync_dim),
        (network.text_tokens, network.text_dim),
    )
    return Features(*(0.1 * torch.randn(PER_VIDEO, *shape, generator=generator).abs() for shape in shapes))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """48 held-out clips of 12 videos, a base and an adapter."""
    root = tmp_path_factory.mktemp("streaming")
    write_random_weights(root / "weights", encoders=False)
    write_random_adapter(root / "a.pt", root / "weights")
    (root / "videos").mkdir()
    write_noise_video(root / "videos" / "0.mp4", 0, SECONDS * PER_VIDEO + 0.2)
    rows = []
    for number in range(12):
        video = f"{number}.mp4"
        if number:
            os.link(root / "videos" / "0.mp4", root / "videos" / video)
        clips = [
            Clip(f"{number}_{n}", video, SECONDS * n, SECONDS * (n + 1), "", "test", -1.0, -20.0, 0.0)
            for n in range(PER_VIDEO)
        ]
        encoders = {component: f"{name}:0" for component, name in encoder_names(model_spec(MODEL)).items()}
        header = Header(
            video,
            [clip.id for clip in clips],
            [clip.caption for clip in clips],
            MODEL,
            SECONDS,
            encoders,
            "s",
            "p",
            "t",
            "",
            VERSION,
        )
        write_shard(shard_path(root / "features", video), header, features(torch.Generator().manual_seed(number)))
        rows += clips
    write_clips(root / "clips.tsv", rows)
    return root


def peak_memory(root: Path, clips: int) -> float:
    """Peak memory of the evaluation of so many clips, in megabytes."""
    output = root / str(clips)
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        *f"--lora_checkpoint {root}/a.pt --test_videos {root}/videos --clips {root}/clips.tsv".split(),
        *f"--features {root}/features --weights {root}/weights --output {output}".split(),
        *f"--steps 1 --strengths= --device cpu --max_clips {clips}".split(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads((output / "metrics.json").read_text())["clips"] == clips
    return float(result.stdout.split()[-1])


@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_clips(root):
    few, many = peak_memory(root, 12), peak_memory(root, 48)
    assert many - few < CLIP_MEGABYTES * (48 - 12), f"{few:.0f} MB for 12 clips, {many:.0f} MB for 48"
