"""What one gain per video does for sparse events: the same videos, trained with it and with windows of equal peaks.

    python -m benchmarks.loudness --output loudness_trial

Draws videos in which an object is struck now and then over quiet room tone, and splits, extracts and trains twice: with
`split.normalize=video` and with `split.normalize=window`. Both adapters are compared with the originals at one gain per
video. About 25 minutes on two CPU cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmaudio import cli
from mmaudio.media.local_files import open_media
from mmaudio.media.mux import write_video
from mmaudio.metrics.loudness import frame_levels
from mmaudio.synthetic.demo import IMAGE_SIZE, SAMPLE_RATE
from mmaudio.synthetic.domains import DEMO
from mmaudio.synthetic.renderer import render_scene
from mmaudio.synthetic.scenes import build_scene, random_actor

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("video", "window")
METRICS = ("near_silent", "mel_l1_loud", "onset_f1")
EVENTS_PER_SECOND = 0.07
FPS = 25
QUIET_DB = -40.0
"""Level below which a frame of the original lies between events, decibels of full scale."""
SOUNDS = {"original": "original", "base": "base", "adapted": "with the adapter"}


def write_videos(folder: Path, count: int, seconds: float) -> None:
    """Write `count` videos of an object that is struck now and then; existing ones are not written again."""
    kinds = DEMO.kinds_with_motion("strike")
    for number in range(count):
        path = folder / f"sparse_{number:02d}.mp4"
        if path.exists():
            continue
        generator = np.random.default_rng((7, number))
        actor = random_actor(kinds[number % len(kinds)], EVENTS_PER_SECOND, seconds, generator)
        scene = build_scene(DEMO, [actor], seconds, generator)
        rendered = render_scene(scene, FPS, IMAGE_SIZE, SAMPLE_RATE, generator)
        write_video(path, rendered.frames, FPS, rendered.waveform, SAMPLE_RATE)
        path.with_suffix(".txt").write_text(rendered.caption + "\n", encoding="utf-8")


def run(script: str, *arguments: object) -> None:
    """Run a command of the project; CalledProcessError where it fails."""
    subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], check=True)


def train_and_evaluate(output: Path, way: str, overrides: Sequence[str]) -> None:
    """Split, extract and train with `split.normalize=way`, then evaluate on the clips at one gain per video."""
    videos, table, features = output / "videos", output / way / "clips.tsv", output / way / "features"
    split = ("--input_dir", videos, "--output_tsv", table, "--val_ratio", 0.15, "--test_ratio", 0.25)
    run("training/split_videos_for_finetuning.py", *split, f"split.normalize={way}")
    extract = ("--input_tsv", table, "--video_root", videos, "--output_dir", features, "--model", "tiny_16k")
    run("training/extract_features_finetuning.py", *extract)
    data = (f"clips_tsv={table}", f"features_dir={features}", f"output_dir={output}")
    run("train_lora.py", f"exp_id={way}_run", "model=tiny_16k", "preset=quick", *data, *overrides)
    adapter = output / f"{way}_run" / "lora_checkpoints" / "best_lora.pt"
    held_out = ("--clips", output / "video" / "clips.tsv", "--features", output / "video" / "features")
    run("evaluate_lora.py", "--lora_checkpoint", adapter, "--test_videos", videos, *held_out)


def read_flac(path: Path) -> tuple[Tensor, int]:
    """The waveform (T,) of a mono FLAC file, in -1..1, and its sample rate in hertz."""
    with open_media(path) as container:
        rate: int = container.streams.audio[0].codec_context.sample_rate
        blocks = [frame.to_ndarray()[0].astype(np.float32) / 2**15 for frame in container.decode(audio=0)]
    return torch.from_numpy(np.concatenate(blocks)), rate


def quiet_levels(media: Path, sound: str) -> Iterator[float]:
    """Levels of `sound` in the frames in which the original is quiet, decibels of full scale, for every clip."""
    for path in sorted(media.glob("*_original.flac")):
        original, sample_rate = read_flac(path)
        waveform, _ = read_flac(path.with_name(path.name.replace("original", sound)))
        samples = min(len(original), len(waveform))
        levels = frame_levels(torch.stack([original[:samples], waveform[:samples]]), sample_rate)
        yield from levels[1][levels[0] < QUIET_DB].tolist()


def format_table(output: Path) -> list[str]:
    """Lines of a Markdown table: the original, the base, and the adapters of both ways."""
    lines = ["| sound | between events, dB (median) | near-silent | mel distance, loud cells | onset F1 |"]
    lines.append("|---|---|---|---|---|")
    for way in WAYS:
        folder = output / f"{way}_run"
        metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
        for sound, label in SOUNDS.items():
            if sound != "adapted" and way != WAYS[0]:
                continue
            level = float(np.median(list(quiet_levels(folder / "report" / "media", sound))))
            values = [metrics[name][sound] for name in METRICS]
            label += f", `normalize: {way}`" if sound == "adapted" else ""
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            lines.append(f"| {label} | {level:.1f} | {' | '.join(cells)} |")
    return lines


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Train on sparse events with one gain per video, and with windows of equal peaks.")
    parser.usage = "python -m benchmarks.loudness [flags] [-- HYDRA_OVERRIDE ...]"
    parser.add_argument("--output", type=Path, default=Path("loudness_trial"), help="where everything is written")
    parser.add_argument("--videos", type=int, default=14, help="how many")
    parser.add_argument("--seconds", type=float, default=48.0, help="length of each")
    return parser


def main(arguments: list[str]) -> None:
    """Write the videos, train both ways, and print the table."""
    flags, overrides = cli.split_overrides(arguments)
    args = build_parser().parse_args(flags)
    write_videos(args.output / "videos", args.videos, args.seconds)
    for way in WAYS:
        train_and_evaluate(args.output, way, overrides)
    print("", *format_table(args.output), sep="\n")


if __name__ == "__main__":
    cli.run(main)
