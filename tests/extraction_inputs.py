"""Inputs of feature extraction: a table's rows, and extraction itself with its settings."""

from __future__ import annotations

import sys

from helpers import ROOT

from mmaudio.data.clips import Clip
from mmaudio.features.extraction import ExtractionConfig, extract

SCRIPT = ROOT / "training" / "extract_features_finetuning.py"
MODEL = "tiny_16k"
SECONDS = 1.0


def clip_row(video, start, caption="a tone"):
    """A row of the table: a clip of SECONDS."""
    return Clip(f"{video[0]}_{start}", video, start, start + SECONDS, caption, "train", -3.0, -20.0, 0.0)


def run_extraction(folder, weights, progress=iter, on_plan=lambda plans: None, **settings):
    """Extract the features of the table in `folder` with the encoders in `weights`."""
    config = ExtractionConfig(MODEL, weights, **settings)
    return extract(folder / "clips.tsv", folder, folder / "features", config, progress, on_plan)


def shard_files(folder):
    """The shards in `folder`, sorted."""
    return sorted((folder / "features").glob("*.safetensors"))


def shard_contents(folder):
    """The bytes of each shard by file name."""
    return {path.name: path.read_bytes() for path in shard_files(folder)}


def extraction_command(folder, weights):
    """The command that extracts the features of the table in `folder` on the CPU."""
    return [
        sys.executable,
        str(SCRIPT),
        "--input_tsv",
        str(folder / "clips.tsv"),
        "--video_root",
        str(folder),
        "--output_dir",
        str(folder / "features"),
        "--model",
        MODEL,
        "--weights",
        str(weights),
        "--device",
        "cpu",
    ]
