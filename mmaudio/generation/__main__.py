"""Generate audio for a video, for a folder of videos, or for a prompt alone, with or without an adapter.

    python -m mmaudio.generation --video dog.mp4 --prompt "footsteps on gravel" --model small_16k --output sound \\
        --adapter output/EXP/lora_checkpoints/best_lora.pt
    python -m mmaudio.generation --folder my_videos --prompt "a dog barks" --output sound
    python -m mmaudio.generation --prompt "rain on a tin roof" --seconds 12 --samples 4 --output rain.flac
    python -m mmaudio.generation --image harbour.jpg --seconds 20 --output sound

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
import sys
from collections.abc import Sequence

from mmaudio.data.captions import find_caption
from mmaudio.data.clips import LeftOut
from mmaudio.errors import ConfigError, DataError
from mmaudio.generation.generate import GenerationRequest, duration_warning
from mmaudio.generation.generation_flags import build_mix, build_parser, check_flags
from mmaudio.generation.job_generator import find_ranking, load_generator, print_line
from mmaudio.generation.jobs import Job, Plan, find_new_failures, plan_folder, plan_job
from mmaudio.generation.prompt_table import read_prompts
from mmaudio.generation.run_settings import open_table
from mmaudio.generation.take_ranking import Ranking
from mmaudio.utils.progress import progress
from mmaudio.utils.terminal import print_lines


def main(arguments: list[str]) -> int:
    """Run the command."""
    args = build_parser().parse_args(arguments)
    check_flags(args)
    ranking = find_ranking(args)
    plan = plan_jobs(args)
    for change in plan.changes:
        print_lines(f"made anew, changed: {change}", flush=True)
    for left_out in plan.left_out:
        print_lines(f"left out: {left_out.video}: {left_out.reason}", flush=True)
    for note in [note for job in plan.jobs for note in job.notes()]:
        print_lines(f"note: {note}", file=sys.stderr)
    warning = duration_warning(max((job.clip_range.seconds for job in plan.jobs), default=0.0))
    if args.one_pass and warning:
        print_lines(f"warning: {warning}", file=sys.stderr)
    failures = run_jobs(plan.jobs, args, ranking) if plan.jobs else []
    if args.folder is None:
        return 0
    all_left_out = [*plan.left_out, *failures]
    num_generated = len(plan.jobs) - len(failures)
    print_lines(
        f"found {plan.num_files} files = {num_generated} made + {len(plan.complete)} already there + "
        f"{len(all_left_out)} left out",
        flush=True,
    )
    if num_generated + len(plan.complete) == 0:
        raise DataError(f"{args.folder}: none of its {plan.num_files} files can be used; the reasons stand above")
    return 1 if find_new_failures(args.output, all_left_out) else 0


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
        args.image,
        args.mask_away_clip,
    )
    metric, count = args.rank_by or "", args.samples if args.rank_by is None else args.keep or 1
    if args.folder is not None:
        find_changes = open_table(args).find_changes
        return plan_folder(args.folder, request, args.output, count, args.overwrite, metric, find_changes)
    build_mix(args).check_source(args.video, request.streams)
    job = plan_job(request, args.output, count, metric=metric)
    existing = job.outputs.existing
    if existing and not args.overwrite:
        raise ConfigError(f"{existing[0]}: is there already; --overwrite replaces it, or choose another --output")
    return Plan([job], num_files=1)


def run_jobs(jobs: Sequence[Job], args: argparse.Namespace, ranking: Ranking | None = None) -> list[LeftOut]:
    """Generate and write the audio of all jobs; those that failed, each of which is printed."""
    generator = load_generator(jobs, args, ranking)
    failures, is_single = [], args.folder is None
    for job in jobs if is_single else progress(jobs, len(jobs), "videos"):
        try:
            generator.run(job, args)
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


if __name__ == "__main__":
    cli.run(main)
