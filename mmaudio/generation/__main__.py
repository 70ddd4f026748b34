"""Generate audio for a video, for a folder of videos, or for a prompt alone, with or without an adapter.

    python -m mmaudio.generation --video dog.mp4 --prompt "footsteps on gravel" --model small_16k --output sound \\
        --adapter output/EXP/lora_checkpoints/best_lora.pt
    python -m mmaudio.generation --folder my_videos --prompt "a dog barks" --output sound
    python -m mmaudio.generation --prompt "rain on a tin roof" --seconds 12 --samples 4 --output rain.flac

Writes sound/dog.flac and sound/dog.mp4, the video's picture (copied, not encoded again) with the new audio. The video's
container is kept if it is .mp4, .m4v, .mov, .mkv, .webm or .wmv; other pictures go into .mp4, or .mkv.
Exit status: 0 done, 1 failed (in a folder: for at least one video, the others are written; a later run counts only
what failed anew), 2 wrong use.
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmaudio.data.captions import find_caption
from mmaudio.data.clips import LeftOut
from mmaudio.errors import ConfigError, DataError
from mmaudio.features.encoders import CONDITION_ENCODERS, ENCODER_COMPONENTS, load_encoders
from mmaudio.generation.generate import (
    MAX_ONE_PASS_SECONDS,
    MAX_SECONDS,
    MIN_SECONDS,
    GenerationRequest,
    all_prompts,
    duration_warning,
    encode_prompts,
    generate_samples,
    plain,
)
from mmaudio.generation.jobs import Job, Plan, find_new_failures, plan_folder, plan_job, write_outputs
from mmaudio.generation.part_store import PartStore, hash_settings
from mmaudio.generation.prompt_table import read_prompts
from mmaudio.generation.sampler import Sampler, fast_dtype, load_sampler
from mmaudio.lora.adapter import merge
from mmaudio.lora.stack import pair_strengths, read_stack
from mmaudio.model.flow_matching import SOLVERS
from mmaudio.model.spec import CLIP_SECONDS
from mmaudio.model.weight_dtype import cast_weights
from mmaudio.utils.progress import progress
from mmaudio.utils.terminal import print_lines
from mmaudio.weights.store import component_sha256, fetch_files

DEFAULT_MODEL = "small_16k"


def build_parser() -> cli.Parser:
    """Build the command line."""
    parser = cli.Parser("Generate audio for a video, for a folder of videos, or for a prompt alone.")
    if not parser.prog.startswith("mmaudio-lora"):
        parser.prog = "python -m mmaudio.generation"
    parser.single_flags = ("--video", "--folder")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--video", type=Path, help="the video; without one the audio follows the prompt alone")
    source.add_argument("--folder", type=Path, help="all videos in it; unusable files are listed and skipped")
    parser.add_argument(
        "--prompt",
        help="describes the audio; if not given: the .txt of the video's name beside it, or its folder's "
        "caption.txt. With --folder these come first, and --prompt is for videos without any",
    )
    parser.add_argument(
        "--prompts", type=Path, help="a table of prompts that change over time, with the columns from, to and prompt"
    )
    parser.add_argument("--negative-prompt", "--negative_prompt", help="describes what the audio shall not contain")
    parser.add_argument("--model", help=f"the base model; the adapter's, or {DEFAULT_MODEL}")
    parser.add_adapter_flags()
    parser.add_argument(
        "--video-track",
        "--video_track",
        type=int,
        help="which picture of a file with several, counted from 0; the default one, else the longest that moves",
    )
    _add_sampling_flags(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("sound"), help="a folder, or a file: .flac, .wav, or a video's suffix"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing files; otherwise they are an error, and with "
        "--folder videos whose files all exist are skipped",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_weights_flags()
    return parser


def _add_sampling_flags(parser: cli.Parser) -> None:
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"duration, {MIN_SECONDS:g} to {MAX_SECONDS:g}, at most to the video's end; the whole video where not "
        f"given, {CLIP_SECONDS:g} for a prompt alone",
    )
    parser.add_argument(
        "--one-pass",
        "--one_pass",
        action="store_true",
        help=f"one pass of the network over all of it, up to {MAX_ONE_PASS_SECONDS:g} s, instead of windows of "
        f"{CLIP_SECONDS:g} s, the duration that models are trained on, which are denoised together",
    )
    parser.add_argument("--start", type=float, default=0.0, help="seconds of the video at which the audio begins")
    parser.add_argument("--steps", type=int, help="solver steps; the model's default where not given")
    parser.add_argument("--method", "--solver", choices=SOLVERS, default=SOLVERS[0], help="of first, of second order")
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 for none; the model's default if not given")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise: the same seed gives the same audio")
    parser.add_argument(
        "--samples",
        type=int,
        default=1,
        help="samples of each video, in one batch, with the seeds from --seed on; "
        "more than one are called NAME_seed0, NAME_seed1, ...",
    )


def main(arguments: list[str]) -> int:
    """Run the command."""
    args = build_parser().parse_args(arguments)
    check_flags(args)
    plan = plan_jobs(args)
    for left_out in plan.left_out:
        print_lines(f"left out: {left_out.video}: {left_out.reason}", flush=True)
    for note in [note for job in plan.jobs for note in job.notes()]:
        print_lines(f"note: {note}", file=sys.stderr)
    warning = duration_warning(max((job.clip_range.seconds for job in plan.jobs), default=0.0))
    if args.one_pass and warning:
        print_lines(f"warning: {warning}", file=sys.stderr)
    failures = run_jobs(plan.jobs, args) if plan.jobs else []
    if args.folder is None:
        return 0
    all_left_out = [*plan.left_out, *failures]
    num_generated = len(plan.jobs) - len(failures)
    print_lines(
        f"found {plan.num_files} files = {num_generated} made + {plan.num_complete} already there + "
        f"{len(all_left_out)} left out",
        flush=True,
    )
    if num_generated + plan.num_complete == 0:
        raise DataError(f"{args.folder}: none of its {plan.num_files} files can be used; the reasons stand above")
    return 1 if find_new_failures(args.output, all_left_out) else 0


def check_flags(args: argparse.Namespace) -> None:
    """Raise ConfigError for invalid numbers, before any file is read."""
    cli.check_at_least(args, samples=1)
    if args.prompts is not None and (args.folder is not None or args.prompt is not None):
        raise ConfigError("--prompts is for one video or text, in place of --prompt")
    if args.video_track is not None and args.video is None and args.folder is None:
        raise ConfigError(f"--video-track {args.video_track}: there is no --video or --folder to take a picture of")
    pair_strengths(args.adapter, args.strength)


def plan_jobs(args: argparse.Namespace) -> Plan:
    """Plan the jobs, checked as far as possible without a model; ConfigError for existing output files."""
    prompt = args.prompt or ""
    if args.video is not None and args.prompt is None and args.prompts is None:
        prompt = find_caption(args.video, "")
        if prompt:
            print_lines(f'note: the prompt beside {args.video.name}: "{prompt}"', file=sys.stderr)
    request = GenerationRequest(
        args.video or args.folder,
        prompt,
        args.negative_prompt or "",
        args.start,
        args.seconds,
        args.seed,
        args.steps,
        args.guidance,
        args.method,
        () if args.prompts is None else read_prompts(args.prompts),
        args.one_pass,
        args.video_track,
    )
    if args.folder is not None:
        return plan_folder(args.folder, request, args.output, args.samples, args.overwrite)
    job = plan_job(request, args.output, args.samples)
    existing = job.outputs.existing
    if existing and not args.overwrite:
        raise ConfigError(f"{existing[0]}: is there already; --overwrite replaces it, or choose another --output")
    return Plan([job], num_files=1)


def run_jobs(jobs: Sequence[Job], args: argparse.Namespace) -> list[LeftOut]:
    """Generate and write the audio of all jobs; those that failed, each of which is printed."""
    device = cli.pick_device(args.device)
    names = CONDITION_ENCODERS if any(job.request.video for job in jobs) else ("clip",)
    sampler, settings = load_adapted_sampler(args, device, [ENCODER_COMPONENTS[name] for name in names])
    encoders = load_encoders(sampler.spec.name, args.weights, device, names)
    text_features = encode_prompts(encoders, [prompt for job in jobs for prompt in all_prompts(job.request)])
    encoders.drop_text_tower()
    failures, is_single = [], args.folder is None
    for job in jobs if is_single else progress(jobs, len(jobs), "videos"):
        store = open_store(job, settings, args)
        bar = label_progress if is_single else plain
        try:
            with cli.explain_out_of_memory("take fewer --samples" if args.samples > 1 else ""):
                waveforms = generate_samples(sampler, encoders, job.request, args.samples, text_features, bar, store)
            write_outputs(job, waveforms, sampler.spec.codec.sample_rate, settings)
            store.clear()
        except DataError as error:
            if job.request.video is None or is_single:
                raise
            name = job.request.video.name
            failures.append(LeftOut(name, str(error).removeprefix(f"{name}: ")))
            print_line(f"left out: {error}")
            continue
        for path in job.outputs.paths:
            print_line(str(path))
    return failures


def label_progress(items: Sequence[Any], label: str) -> Iterator[Any]:
    """Yield `items` with a progress bar."""
    return progress(items, len(items), label)


def open_store(job: Job, settings: Mapping[str, Any], args: argparse.Namespace) -> PartStore:
    """The store of a job's finished parts, beside its output: on disk for more than a window, else in memory."""
    if args.one_pass or job.clip_range.seconds <= CLIP_SECONDS:
        return PartStore()
    first = job.outputs.paths[0]
    paths = [path for path in (job.request.video, *args.adapter) if path is not None]
    key = hash_settings({**settings, **dataclasses.asdict(job.request), "samples": args.samples}, paths)
    return PartStore(first.with_name(f".{first.stem}.generation"), key)


def print_line(line: str) -> None:
    """Print a line above any progress bar."""
    with tqdm.external_write_mode(file=sys.stdout):
        print_lines(line, flush=True)


def load_adapted_sampler(
    args: argparse.Namespace, device: torch.device, encoder_components: Sequence[str] = ()
) -> tuple[Sampler, dict[str, Any]]:
    """Load the model's sampler with the adapters merged in, and the settings that are stored in the audio files.

    Missing files are fetched, those of `encoder_components` too. Raises WeightsError where files are missing or an
    adapter was trained on another model.
    """
    pairs = pair_strengths(args.adapter, args.strength)
    stack = read_stack(pairs) if pairs else None
    model = args.model or (stack.base_model if stack is not None else "") or DEFAULT_MODEL
    if stack is not None:
        stack.check(model)
    components = ("network", "vae", "vocoder", *encoder_components)
    fetch_files(model, components, args.weights, cli.is_offline(args.offline))
    sampler = load_sampler(model, args.weights, device, dtype=fast_dtype(device))
    settings = {
        "model": model,
        "steps": sampler.spec.num_steps if args.steps is None else args.steps,
        "guidance": sampler.spec.guidance_scale if args.guidance is None else args.guidance,
    }
    if stack is not None and not all(adapter.strength.is_zero for adapter in stack.adapters):
        adapted = stack.attach(sampler.network, model, component_sha256(model, "network", args.weights))
        sampler.network = merge(adapted).eval().requires_grad_(False)
        adapters = stack.to_json()
        settings |= adapters[0] if len(adapters) == 1 else {"adapters": adapters}
    cast_weights(sampler.network, sampler.dtype)
    return sampler, settings


if __name__ == "__main__":
    cli.run(main)
