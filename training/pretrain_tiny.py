"""Train the embedded base `tiny_16k` from nothing: its encoders, its codec and its network.

    python training/pretrain_tiny.py --work_dir pretraining --output_dir pretraining/tiny_16k

Stages: data (clips through real H.264/AAC files), sync (7 000 steps), vae (2 400), clip (1 400), features,
network (5 000), evaluate. Started again, it goes on from the last checkpoint. Compiling needs a C++ compiler.

`--device` is the GPU where there is one (`cpu`, `cuda`, `cuda:N`): clips are held in its memory where they fit, a step
is recorded once and replayed (`--eager`: not), and random numbers are those of the CPU. `--steps sync=20000
network=10000` trains these stages longer or shorter; a stage that is done stays done until its file in the working
folder is removed. `--threads` is every core of the machine unless it is given: clips are made in that many processes.
Each stage says at its end how many steps it took, and how fast. On a GPU the recipe has run in miniature alone
(`tests/test_gpu_recipe.py`); how long the whole takes there has not been measured.

What the shipped weights reach, measured through video files, the exported float16 weights and Griffin-Lim, 25 Euler
steps: onset F1 (100 ms) 0.873 at guidance 3 on 40 held-out clips of its own domain (the sounds of other clips 0.13;
the codec alone 0.988), 0.785 on 24 clips of the demo's domain, which it never met. From the text alone the sound is
nearest to the named kind's in 15 % of 34 names (chance 3 %). The sync encoder is what holds the onsets back: at its
end its loss was still falling (0.80).

The shipped sync encoder and network were trained by this recipe as it stands, on two CPU cores that did other work
besides: data 6 min, sync 29, features 3, network 33. VAE and CLIP are those of the recipe's first run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from mmaudio import cli
from mmaudio.pretraining.stages import STAGES, Plan, Pretraining, steps_from


def parser() -> cli.Parser:
    """The flags."""
    flags = cli.Parser("Train the embedded base tiny_16k from nothing")
    flags.add_argument("--work_dir", type=Path, default=Path("pretraining"), help="clips and checkpoints, 10 GB")
    flags.add_argument("--output_dir", type=Path, default=Path("pretraining/tiny_16k"), help="where the weights go")
    flags.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="those to run")
    flags.add_argument("--threads", type=int, default=cores(), help="CPU cores to use, and processes that make clips")
    flags.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    flags.add_argument("--steps", nargs="+", default=[], metavar="STAGE=N", help="other numbers of steps")
    flags.add_argument("--eager", action="store_true", help="on a GPU, compute each step anew instead of replaying one")
    return flags


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: list[str]) -> None:
    """Run the stages; each goes on where it was interrupted."""
    flags = parser().parse_args(arguments)
    cli.at_least(flags, threads=1)
    device, plan = cli.pick_device(flags.device), Plan().with_steps(steps_from(flags.steps), record=not flags.eager)
    torch.set_num_threads(flags.threads)
    flags.work_dir.mkdir(parents=True, exist_ok=True)

    def log(message: str) -> None:
        print(message, flush=True)
        with (flags.work_dir / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {message}\n")

    Pretraining(flags.work_dir, flags.output_dir, log, flags.threads, plan, device).run(tuple(flags.stages))


if __name__ == "__main__":
    cli.run(main)
