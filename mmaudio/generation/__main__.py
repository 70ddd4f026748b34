"""Make sounds for a video, for a folder of videos, or for a prompt alone, with or without an adapter.

    python -m mmaudio.generation --video dog.mp4 --prompt "footsteps on gravel" --model small_16k --output sound \\
        --adapter output/EXP/lora_checkpoints/best_lora.pt
    python -m mmaudio.generation --folder my_videos --prompt "a dog barks" --output sound
    python -m mmaudio.generation --prompt "rain on a tin roof" --seconds 12 --samples 4 --output rain.flac

Writes sound/dog.flac and sound/dog.mp4, the video's picture (copied, not encoded again) with the new sound. The file
keeps the video's kind where it is .mp4, .m4v, .mov, .mkv, .webm or .wmv; other kinds' pictures go into .mp4, or .mkv.
Exit status: 0 done, 1 failed (in a folder: for at least one video, the others are made), 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmaudio import cli
from mmaudio.data.captions import caption
from mmaudio.errors import ConfigError, DataError
from mmaudio.features.encoders import PARTS, SEEING, load_encoders
from mmaudio.generation.generate import LONGEST, SHORTEST, Wish, caution, encode_prompts, generate_samples
from mmaudio.generation.jobs import Job, Plan, job_for, plan_folder, write
from mmaudio.generation.sampler import Sampler, fast_dtype, load_sampler
from mmaudio.lora.adapter import MAX_STRENGTH, merge, set_strength
from mmaudio.lora.checkpoint import attach, check_base, read_adapter
from mmaudio.model.flow_matching import SOLVERS
from mmaudio.model.spec import SECONDS
from mmaudio.model.weight_dtype import cast_weights
from mmaudio.utils.progress import progress
from mmaudio.weights.store import fetch, identity

DEFAULT_MODEL = "small_16k"


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Make sounds for a video, for a folder of videos, or for a prompt alone.")
    made.prog = "python -m mmaudio.generation"
    source = made.add_mutually_exclusive_group()
    source.add_argument("--video", type=Path, help="the video; without one the prompt alone counts")
    source.add_argument("--folder", type=Path, help="every video in it; what cannot be used is named, the rest is made")
    made.add_argument(
        "--prompt",
        help="what is to be heard; not given: the .txt of the video's name beside it, or its folder's "
        "caption.txt. With --folder these count first, and --prompt for the videos without any",
    )
    made.add_argument("--negative-prompt", "--negative_prompt", help="what is not to be heard")
    made.add_argument("--model", help=f"the base model; the adapter's, or {DEFAULT_MODEL}")
    made.add_argument("--adapter", type=Path, help="an adapter: best_lora.pt, or a folder that PEFT wrote")
    made.add_argument(
        "--strength", type=float, help=f"the adapter's, 0 (the base model) to {MAX_STRENGTH}; 1 where not given"
    )
    made.add_argument(
        "--seconds",
        type=float,
        help=f"duration, {SHORTEST:g} to {LONGEST:g}, at most to the video's end; "
        f"{SECONDS:g} where not given, which is what models are trained on",
    )
    made.add_argument("--start", type=float, default=0.0, help="seconds of the video at which the sound begins")
    made.add_argument("--steps", type=int, help="solver steps; the model's own where not given")
    made.add_argument("--method", "--solver", choices=SOLVERS, default=SOLVERS[0], help="of first, of second order")
    made.add_argument(
        "--guidance", type=float, help="strength of guidance, 1 for none; the model's own where not given"
    )
    made.add_argument("--seed", type=int, default=0, help="what the noise is drawn from: it fixes the sound")
    made.add_argument(
        "--samples",
        type=int,
        default=1,
        help="sounds to make of each, in one batch, with the seeds from --seed on; "
        "more than one are called NAME_seed0, NAME_seed1, ...",
    )
    made.add_argument(
        "--output", type=Path, default=Path("sound"), help="a folder, or a file: .flac, .wav, or a video's suffix"
    )
    made.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files that are there; otherwise they are an error, and with "
        "--folder the videos whose files are all there are passed over",
    )
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_weights_flags()
    return made


def main(arguments: list[str]) -> int:
    """Generate as `arguments` ask for."""
    args = parser().parse_args(arguments)
    check(args)
    plan = plan_for(args)
    for left_out in plan.left_out:
        print(f"left out: {left_out.video}: {left_out.reason}", flush=True)
    for said in [note for job in plan.jobs for note in job.notes()]:
        print(f"note: {said}", file=sys.stderr)
    longest = max((job.span.seconds for job in plan.jobs), default=0.0)
    if caution(longest):
        print(f"warning: {caution(longest)}", file=sys.stderr)
    failed = run(plan.jobs, args) if plan.jobs else 0
    if args.folder is not None:
        left = len(plan.left_out) + failed
        made = len(plan.jobs) - failed
        print(f"found {plan.found} files = {made} made + {plan.kept} already there + {left} left out", flush=True)
        if made + plan.kept == 0:
            raise DataError(f"{args.folder}: none of its {plan.found} files can be used; the reasons stand above")
    return 1 if failed or plan.broken else 0


def check(args: argparse.Namespace) -> None:
    """ConfigError for numbers that make no sense, before anything is looked at."""
    cli.at_least(args, samples=1)
    if args.strength is not None and args.adapter is None:
        raise ConfigError(f"--strength {args.strength:g}: there is no --adapter that it could be the strength of")
    if args.strength is not None and not 0 <= args.strength <= MAX_STRENGTH:
        raise ConfigError(f"--strength {args.strength:g}: from 0, the base model, to {MAX_STRENGTH}; 1 is as trained")


def plan_for(args: argparse.Namespace) -> Plan:
    """What is to be made, checked as far as it can be without a model; ConfigError where files are in the way."""
    prompt = args.prompt or ""
    if args.video is not None and args.prompt is None:
        prompt = caption(args.video, "")
        if prompt:
            print(f'note: the prompt beside {args.video.name}: "{prompt}"', file=sys.stderr)
    wish = Wish(
        args.video or args.folder,
        prompt,
        args.negative_prompt or "",
        args.start,
        args.seconds,
        args.seed,
        args.steps,
        args.guidance,
        args.method,
    )
    if args.folder is not None:
        return plan_folder(args.folder, wish, args.output, args.samples, args.overwrite)
    job = job_for(wish, args.output, args.samples)
    if job.existing and not args.overwrite:
        raise ConfigError(f"{job.existing[0]}: is there already; --overwrite replaces it, or choose another --output")
    return Plan([job], found=1)


def run(jobs: Sequence[Job], args: argparse.Namespace) -> int:
    """Make the sounds of all jobs; the number of those that failed, each of which is named."""
    device = cli.pick_device(args.device)
    parts = SEEING if any(job.wish.video for job in jobs) else ("clip",)
    sampler, settings = adapted_sampler(args, device, [PARTS[part] for part in parts])
    encoders = load_encoders(sampler.spec.name, args.weights, device, parts)
    texts = encode_prompts(encoders, [text for job in jobs for text in (job.wish.prompt, job.wish.negative_prompt)])
    encoders.only_texts(())  # the text tower may go
    failed, alone = 0, args.folder is None
    for job in jobs if alone else progress(jobs, len(jobs), "videos"):
        steps = (lambda steps: progress(steps, len(steps), "solver steps")) if alone else iter
        try:
            sounds = generate_samples(sampler, encoders, job.wish, args.samples, texts, steps)
            write(job, sounds, sampler.spec.codec.rate, settings)
        except DataError as error:
            if alone:
                raise
            failed += 1
            say(f"left out: {error}")
            continue
        for file in job.files:
            say(str(file))
    return failed


def say(line: str) -> None:
    """Print a line, above any progress bar."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(line, flush=True)


def adapted_sampler(
    args: argparse.Namespace, device: torch.device, encoders: Sequence[str] = ()
) -> tuple[Sampler, dict[str, Any]]:
    """The sampler of the model with the adapter merged in, and what tells later which they were.

    Absent files are fetched, those of the `encoders` too. Raises WeightsError where files are missing or the adapter
    was made for another model.
    """
    file = None if args.adapter is None else read_adapter(args.adapter)
    name = args.model or (file.base_model if file is not None else "") or DEFAULT_MODEL
    if file is not None:
        check_base(file, name)
    fetch(name, ("network", "vae", "vocoder", *encoders), args.weights, cli.is_offline(args.offline))
    sampler = load_sampler(name, args.weights, device, dtype=fast_dtype(device))
    settings = {
        "model": name,
        "steps": sampler.spec.steps if args.steps is None else args.steps,
        "guidance": sampler.spec.guidance if args.guidance is None else args.guidance,
    }
    strength = 1.0 if args.strength is None else args.strength
    if file is not None and strength > 0:
        adapted = attach(sampler.network, file, name, identity(name, "network", args.weights))
        set_strength(adapted, strength)
        sampler.network = merge(adapted).eval().requires_grad_(False)
        settings |= {"adapter": args.adapter.name, "strength": strength}
    cast_weights(sampler.network, sampler.dtype)
    return sampler, settings


if __name__ == "__main__":
    cli.run(main)
