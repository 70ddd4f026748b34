"""Train the embedded base `tiny_16k` from nothing: its encoders, its codec and its network.

    python training/pretrain_tiny.py --work_dir pretraining --output_dir pretraining/tiny_16k

Stages: data (clips through real H.264/AAC files), sync (7 000 steps), vae (2 400), clip (1 400), features,
network (5 000), evaluate. Run again, it resumes from the last checkpoint. Compiling needs a C++ compiler.

`--device` is the GPU where there is one (`cpu`, `cuda`, `cuda:N`): clips are kept in its memory where they fit, a step
is captured as a CUDA graph and replayed (not with `--eager`), and random numbers are those of the CPU. `--steps
sync=20000 network=10000` trains these stages longer or shorter; a complete stage is not run again until its file in
the working folder is removed. `--threads` is every core of the machine unless it is set: clips are rendered in that
many processes. Each stage logs at its end how many steps it took, and how fast. On a GPU the recipe has run in
miniature alone (`tests/pretraining/test_gpu_recipe.py`); how long the whole takes there has not been measured.

Metrics of the shipped weights, measured through video files, the exported float16 weights and Griffin-Lim, 25 Euler
steps: onset F1 (100 ms) 0.873 at guidance 3 on 40 held-out clips of its own domain (the audio of other clips 0.13;
the codec alone 0.988), 0.785 on 24 clips of the demo's domain, which it was not trained on. From the text alone the
audio is nearest to the named kind's in 15 % of 34 names (chance 3 %). The sync encoder limits the onsets: at the end
of training its loss was still falling (0.80).

The shipped sync encoder and network were trained by this recipe as it stands, on two CPU cores that did other work
besides: data 6 min, sync 29, features 3, network 33. VAE and CLIP are those of the recipe's first run.
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

import time
from pathlib import Path

import torch

from mmaudio.pretraining.stages import STAGES, Pretraining, PretrainingConfig, parse_steps
from mmaudio.utils.cores import count_cores
from mmaudio.utils.terminal import print_lines


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser("Train the embedded base tiny_16k from nothing")
    parser.add_argument("--work_dir", type=Path, default=Path("pretraining"), help="clips and checkpoints, 10 GB")
    parser.add_argument("--output_dir", type=Path, default=Path("pretraining/tiny_16k"), help="folder for the weights")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="those to run")
    parser.add_argument(
        "--threads", type=int, default=count_cores(), help="CPU cores to use, and processes that render clips"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--steps", nargs="+", default=[], metavar="STAGE=N", help="other numbers of steps")
    parser.add_argument("--eager", action="store_true", help="on a GPU, no CUDA graph: every kernel is launched anew")
    return parser


def main(arguments: list[str]) -> None:
    """Run the stages; each resumes where it was interrupted."""
    args = build_parser().parse_args(arguments)
    cli.check_at_least(args, threads=1)
    device = cli.pick_device(args.device)
    config = PretrainingConfig().with_steps(parse_steps(args.steps), cuda_graph=not args.eager)
    torch.set_num_threads(args.threads)
    args.work_dir.mkdir(parents=True, exist_ok=True)

    def log(message: str) -> None:
        """Print a line, and write it into the work folder's log with the time."""
        print_lines(message, flush=True)
        with (args.work_dir / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {message}\n")

    Pretraining(args.work_dir, args.output_dir, log, args.threads, config, device).run(tuple(args.stages))


if __name__ == "__main__":
    cli.run(main)
