"""Memory and time of audio of any length: one process per duration, text alone.

    python -m benchmarks.long_generation
    python -m benchmarks.long_generation --seconds 60 300 1200 --steps 25

Prints for each duration the processor time of sampling and decoding, and the peak memory of its process, the loaded
model included. Processor time is compared, as other programs share the machine.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmaudio import cli
from mmaudio.features.encoders import load_encoders
from mmaudio.generation.generate import GenerationRequest, encode_prompts, generate_samples
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.sampler import load_sampler

MIB_PER_UNIT = 2**-20 if sys.platform == "darwin" else 2**-10
"""Of `ru_maxrss`."""


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Measure memory and time of audio of several durations.")
    parser.add_argument("--model", default="tiny_16k", help="the base model")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0, 300.0, 1200.0], help="durations")
    parser.add_argument("--steps", type=int, default=4, help="solver steps")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--one", action="store_true", help="measure in this process, and print numbers alone")
    parser.add_weights_flags()
    return parser


def measure(model: str, seconds: float, steps: int, device: str, weights: Path | None) -> dict[str, float]:
    """Processor time in seconds and peak memory in MiB of one piece of audio; parts are stored on disk."""
    place = cli.pick_device(device)
    sampler = load_sampler(model, weights, place)
    encoders = load_encoders(model, weights, place, ("clip",))
    request = GenerationRequest(None, "rain on a tin roof", seconds=seconds, num_steps=steps)
    texts = encode_prompts(encoders, [request.prompt])
    encoders.drop_text_tower()
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        waveforms = generate_samples(sampler, encoders, request, 1, texts, store=PartStore(Path(folder), "parts"))
        cpu_seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MIB_PER_UNIT
    return {"seconds": seconds, "samples": waveforms.shape[1], "cpu_seconds": cpu_seconds, "peak_mib": peak}


def main(arguments: list[str]) -> None:
    """Run the command."""
    args = build_parser().parse_args(arguments)
    if args.one:
        for seconds in args.seconds:
            print(json.dumps(measure(args.model, seconds, args.steps, args.device, args.weights)))
        return
    rest = [*("--model", args.model, "--steps", str(args.steps), "--device", args.device)]
    rest += [] if args.weights is None else ["--weights", str(args.weights)]
    for seconds in args.seconds:
        command = [sys.executable, "-m", "benchmarks.long_generation", "--one", "--seconds", str(seconds), *rest]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        rate = row["cpu_seconds"] / row["seconds"]
        print(
            f"{seconds / 60:5.1f} min: {row['cpu_seconds']:7.1f} s of processor time, {rate:.3f} per second of audio, "
            f"peak {row['peak_mib']:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main)
