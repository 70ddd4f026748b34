"""Memory and time of audio of any length: one process per duration, for a text or a video.

    python -m benchmarks.long_generation
    python -m benchmarks.long_generation --video
    python -m benchmarks.long_generation --seconds 60 300 1200 --steps 25

`--video` draws a video of the demo's domain as long as the longest duration, one minute over and over.

Prints for each duration the processor time from the text or video to the waveform, and the peak memory of its process,
the loaded model included. Processor time is compared, as other programs share the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mmaudio import cli
from mmaudio.features.encoders import load_encoders
from mmaudio.generation.generate import GenerationRequest, encode_prompts, generate_samples
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.sampler import load_sampler
from mmaudio.media.mux import write_video
from mmaudio.synthetic.demo import IMAGE_SIZE, SAMPLE_RATE
from mmaudio.synthetic.domains import DEMO
from mmaudio.synthetic.renderer import render_scene
from mmaudio.synthetic.scenes import random_scene

FPS = 25
MIB_PER_UNIT = 2**-20 if sys.platform == "darwin" else 2**-10
"""Of `ru_maxrss`."""


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Measure memory and time of audio of several durations.")
    parser.add_argument("--model", default="tiny_16k", help="the base model")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0, 300.0, 1200.0], help="durations")
    parser.add_argument("--steps", type=int, default=4, help="solver steps")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--video", action="store_true", help="audio for a drawn video, not for a text alone")
    parser.add_argument("--one", action="store_true", help="measure in this process, and print numbers alone")
    parser.add_argument("--source", type=Path, help="with --one: the video")
    parser.add_weights_flags()
    return parser


def draw_video(path: Path, seconds: float) -> None:
    """Write a video of at least `seconds`: a minute of the demo's domain, repeated."""
    generator = np.random.default_rng(21)
    scene = random_scene(DEMO, min(60.0, seconds), generator)
    frames = render_scene(scene, FPS, IMAGE_SIZE, SAMPLE_RATE, generator).frames
    repeats = math.ceil(seconds * FPS / len(frames))
    write_video(path, itertools.chain.from_iterable(itertools.repeat(frames, repeats)), FPS)


def measure(args: argparse.Namespace, seconds: float) -> dict[str, float]:
    """Processor time in seconds and peak memory in MiB of one piece of audio; parts are stored on disk."""
    place = cli.pick_device(args.device)
    sampler = load_sampler(args.model, args.weights, place)
    encoders = load_encoders(args.model, args.weights, place, ("clip",) if args.source is None else ("clip", "sync"))
    request = GenerationRequest(args.source, "rain on a tin roof", seconds=seconds, num_steps=args.steps)
    texts = encode_prompts(encoders, [request.prompt])
    encoders.drop_text_tower()
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        waveforms = generate_samples(sampler, encoders, request, 1, texts, store=PartStore(Path(folder), "parts"))
        cpu_seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MIB_PER_UNIT
    return {"seconds": seconds, "samples": waveforms.shape[1], "cpu_seconds": cpu_seconds, "peak_mib": peak}


def measure_in_process(args: argparse.Namespace, seconds: float, source: Path | None) -> dict[str, float]:
    """`measure` in a process of its own, whose peak is that of this duration alone."""
    command = [sys.executable, "-m", "benchmarks.long_generation", "--one", "--seconds", str(seconds)]
    command += ["--model", args.model, "--steps", str(args.steps), "--device", args.device]
    command += [] if args.weights is None else ["--weights", str(args.weights)]
    command += [] if source is None else ["--source", str(source)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row: dict[str, float] = json.loads(printed.splitlines()[-1])
    return row


def main(arguments: list[str]) -> None:
    """Run the command."""
    args = build_parser().parse_args(arguments)
    if args.one:
        for seconds in args.seconds:
            print(json.dumps(measure(args, seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "drawn.mp4" if args.video else None
        if source is not None:
            draw_video(source, max(args.seconds))
        for seconds in args.seconds:
            row = measure_in_process(args, seconds, source)
            rate = row["cpu_seconds"] / row["seconds"]
            print(
                f"{seconds / 60:5.1f} min: {row['cpu_seconds']:7.1f} s of processor time, {rate:.3f} per second of "
                f"audio, peak {row['peak_mib']:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    cli.run(main)
