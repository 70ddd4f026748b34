"""The released models at their full size, on this machine: how long they take and how much memory.

    .venv/bin/python tests/full_size.py FOLDER VIDEOS

Writes files of the released names, formats and sizes with arbitrary numbers into FOLDER (12 GB; kept for the next run),
then runs the whole pipeline with small_16k on VIDEOS, and ten training steps of large_44k_v2 on features of its shapes.
Each command's time and largest resident size are printed. It is no test: it takes half an hour without a GPU.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mini_training
import numpy as np
import torch
from helpers import ROOT, fill, manifest
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.timing import describe_device
from mmaudio.model.spec import model_spec
from mmaudio.pipeline.job import PRECISIONS

FILES = {
    "mmaudio_small_16k.pth": "network_small_16k",
    "mmaudio_large_44k_v2.pth": "network_large_44k_v2",
    "v1-16.pth": "vae_16k",
    "best_netG.pt": "vocoder_16k",
    "synchformer_state_dict.pth": "synchformer",
    "open_clip_model.safetensors": "clip_vit_h_14_384",
}
"""The manifest of each file's keys and shapes."""
TRAINING = ("preset=quick", "preserve_base=0", "max_steps=10", "warmup_steps=2", "eval_every=5")
LARGE = (
    "batch_size=2",
    "gradient_accumulation_steps=1",
    "max_steps=10",
    "warmup_steps=2",
    "eval_every=10",
    "logging.sample_every=0",
    "logging.log_every=1",
    "lora.rank=64",
)


def make_weights(folder: Path) -> None:
    """Write every file of FILES that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, keys in FILES.items():
        path = folder / name
        if path.exists():
            continue
        print(f"making {path}", flush=True)
        state = {key: _values(key, tuple(shape)) for key, (_, shape) in manifest(keys).items()}
        temporary = path.with_suffix(".part")
        _writer(name)(state, temporary)
        temporary.rename(path)


def _values(key: str, shape: tuple[int, ...]) -> Tensor:
    values = torch.from_numpy(np.asarray(fill.fill_values(key, shape)))
    return values.abs() + 0.5 if key == "data_std" else values


def _writer(name: str) -> Callable[[dict[str, Tensor], Path], None]:
    if name.endswith(".safetensors"):
        return lambda state, path: save_file(state, path)
    if name == "best_netG.pt":
        return lambda state, path: torch.save({"generator": state}, path)
    return lambda state, path: torch.save(state, path)


def make_features(folder: Path, model: str) -> None:
    """A table of eight clips of four videos, and their feature shards of the shapes of `model`."""
    spec = model_spec(model)
    rows = mini_training.clip_rows(6, videos=3) + mini_training.clip_rows(2, "val", videos=1)
    folder.mkdir(parents=True, exist_ok=True)
    mini_training.write_shards(folder, rows, spec.network, model, folder / "features")


def measure(name: str, command: list[str]) -> None:
    """Run a command, and print its time and its largest process; SystemExit where it fails."""
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    peak = max(used.ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 2**20
    print(f"#### {name}: {time.monotonic() - start:.0f} s, at most {peak:.1f} GiB in one process", flush=True)
    if status:
        sys.exit(f"{name} failed")


def run_small_pipeline(folder: Path, videos: Path, precision: str) -> None:
    """The whole pipeline with small_16k on `videos`."""
    command = [
        sys.executable,
        "-m",
        "mmaudio.pipeline",
        str(videos.resolve()),
        "--model",
        "small_16k",
        "--yes",
        "--offline",
    ]
    command += ["--precision", precision, "--weights", str(folder / "weights")]
    command += ["--output", str(folder / f"small_16k_{precision}"), "--", *TRAINING]
    measure("small_16k, the whole pipeline", command)


def run_large_training(folder: Path) -> None:
    """Ten training steps of large_44k_v2 on random features."""
    make_features(folder / "large", "large_44k_v2")
    paths = {
        "weights": folder / "weights",
        "clips_tsv": folder / "large" / "clips.tsv",
        "features_dir": folder / "large" / "features",
        "output_dir": folder / "large" / "output",
    }
    settings = ["exp_id=large", "model=large_44k_v2", "offline=true", "resume=false"]
    settings += [f"{key}={path}" for key, path in paths.items()]
    measure("large_44k_v2, ten training steps", [sys.executable, "train_lora.py", *settings, *LARGE])


def main() -> None:
    """Write the files, run both jobs."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--only", choices=("pipeline", "large"), help="one of the two jobs")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the encoders in extraction")
    args = parser.parse_args()
    folder = args.folder.resolve()
    make_weights(folder / "weights")
    print(describe_device(torch.device("cpu")), flush=True)
    if args.only != "large":
        run_small_pipeline(folder, args.videos, args.precision)
    if args.only != "pipeline":
        run_large_training(folder)


if __name__ == "__main__":
    main()
