"""Evaluation of an adapter against its base model on held-out videos, with an HTML report.

    python evaluate_lora.py --lora_checkpoint output/EXP/lora_checkpoints/best_lora.pt --test_videos ./my_videos \\
        --compare_original

Writes metrics.json, metrics.tsv and report/index.html beside the checkpoint's folder (or into --output). Does nothing
where they are still valid. An experiment that was trained with folds (--lora_checkpoint output/EXP) has each fold
evaluated on the videos that it held out, and one report on all of them.
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

import argparse
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mmaudio.data.folds import read_fold_plan
from mmaudio.errors import ConfigError
from mmaudio.evaluation import uncomputed_metrics
from mmaudio.evaluation.clip_set import HELD_OUT
from mmaudio.evaluation.config import DEFAULT_REPORT_CLIPS, EvaluationConfig, SamplingConfig
from mmaudio.evaluation.evaluate import Evaluation, evaluate
from mmaudio.evaluation.strength_sweep import DEFAULT_STRENGTHS, strengths_to_try
from mmaudio.generation.sampler import fast_dtype
from mmaudio.lora.stack import adapter_name, pair_strengths
from mmaudio.lora.strength import AS_TRAINED, Strength
from mmaudio.model.spec import MODELS
from mmaudio.report.clip_media import ClipMediaWriter
from mmaudio.report.fold_evaluation import ADAPTER, open_experiment, summarize, write_files
from mmaudio.report.source_sections import renew_report
from mmaudio.utils.locks import wait_for_lock
from mmaudio.utils.progress import working
from mmaudio.utils.terminal import print_lines
from mmaudio.utils.trackers import DEFAULT_TRACKERS, PROJECT, TRACKERS, check_trackers


def build_parser() -> cli.Parser:
    """The parser of the command line."""
    parser = cli.Parser("Compare a base model and an adapter, or the folds of an experiment, on held-out videos.")
    parser.add_adapter_flags("--lora_checkpoint", required=True)
    parser.add_argument("--test_videos", type=Path, required=True, help="the folder with the videos of the clips")
    parser.add_argument(
        "--compare_original", action="store_true", help="compare with the base model and the original audio: always on"
    )
    parser.add_argument("--model", choices=list(MODELS), help="the base model, for an adapter that names none")
    parser.add_argument("--clips", type=Path, default=Path("lora_data/clips.tsv"), help="the table of clips")
    parser.add_argument("--features", type=Path, default=Path("lora_data/features"), help="the folder of features")
    parser.add_argument("--output", type=Path, help="where results go (default: the experiment's folder)")
    parser.add_argument("--general_videos", type=Path, help="videos of other things, to show what was forgotten")
    parser.add_argument(
        "--metrics", type=parse_names, help="only these, comma separated (default: every available one)"
    )
    parser.add_argument(
        "--check-data", action="store_true", help="list the training clips whose audio is out of sync with the video"
    )
    parser.add_argument(
        "--allow-outside", action="store_true", help="take videos outside of the folder that the table names"
    )
    parser.add_argument("--samples", type=int, default=1, help="samples per clip, each from its own noise")
    parser.add_argument(
        "--strengths",
        metavar="S,S,...",
        help="strengths of the adapter to try besides 0 and 1, on a few clips; none: '' (default "
        f"{','.join(map(str, DEFAULT_STRENGTHS))}; none with --strength, a second adapter, or too few held-out videos)",
    )
    parser.add_argument(
        "--include-training",
        action="store_true",
        help="compare clips of videos that were trained on, too, and mark them",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all noise")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's own)")
    parser.add_argument("--steps", type=int, help="solver steps (default: the model's own)")
    parser.add_argument("--fold", type=int, help="evaluate this fold of an experiment alone, from 1 on")
    add_limit_flags(parser)
    add_tracker_flags(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_weights_flags()
    return parser


def add_limit_flags(parser: cli.Parser) -> None:
    """Add `--max_clips`, `--report_clips` and `--batch_size`."""
    parser.add_argument("--max_clips", type=int, help="at most so many held-out clips, evenly over the videos")
    parser.add_argument(
        "--report_clips",
        type=int,
        default=DEFAULT_REPORT_CLIPS,
        help="clips that the report plays at most: worst, best, evenly over the videos (default: %(default)s)",
    )
    parser.add_argument(
        "--batch_size", type=int, help="clips that are computed together at most (default: by the device's memory)"
    )


def add_tracker_flags(parser: cli.Parser) -> None:
    """Add `--trackers` and `--project`."""
    parser.add_argument(
        "--trackers",
        type=parse_names,
        default=DEFAULT_TRACKERS,
        help=f"where scalars go, comma separated: {', '.join(TRACKERS)} (default: {', '.join(DEFAULT_TRACKERS)})",
    )
    parser.add_argument("--project", default=PROJECT, help="the project's name in wandb and trackio")


def main(arguments: list[str]) -> int:
    """Evaluate, or say that the results are still valid."""
    args = build_parser().parse_args(arguments)
    root = experiment_with_folds(args)
    if root is not None:
        return evaluate_folds(args, root)
    args.lora_checkpoint = [path / ADAPTER if (path / ADAPTER).is_file() else path for path in args.lora_checkpoint]
    config = build_config(args)
    start = time.monotonic()
    waiting = f"another process evaluates into {config.output_dir}"
    with ExitStack() as stack:
        lock = wait_for_lock(config.output_dir, "evaluation", waiting)
        evaluation = evaluate(config, ClipMediaWriter(config.report_path), lambda: stack.enter_context(lock))
        if evaluation is None:
            renewed = "its sections on training and data are made anew" if renew_report(config) else "nothing to do"
            print_lines(f"evaluation: {config.report_path} is still valid, {renewed}")
        else:
            with working("writing the report"):
                write_files(evaluation)
            print_summary(evaluation)
    print_lines(f"report: {config.report_path} ({time.monotonic() - start:.0f} s)", flush=True)
    return 0


def experiment_with_folds(args: argparse.Namespace) -> Path | None:
    """The experiment that is to be evaluated, where it has folds.

    ConfigError for a fold that there is not, and for an experiment where one adapter is expected.
    """
    plans = {path: read_fold_plan(path) for path in args.lora_checkpoint}
    root, plan = next(((path, plan) for path, plan in plans.items() if plan is not None), (None, None))
    if plan is not None and (len(plans) > 1 or args.strength):
        raise ConfigError(
            f"--lora_checkpoint {root}: an experiment with folds is evaluated as it is, without --strength or a second "
            "adapter"
        )
    if args.fold is not None and (plan is None or args.fold not in plan.numbers):
        number = "no folds" if plan is None else f"folds 1 to {len(plan)}"
        raise ConfigError(f"--fold {args.fold}: --lora_checkpoint names an experiment with {number}")
    return root


def evaluate_folds(args: argparse.Namespace, root: Path) -> int:
    """Evaluate an experiment with folds, or one of them, or say that the results are still valid."""
    start = time.monotonic()
    args.lora_checkpoint = [root / ADAPTER]
    experiment = open_experiment(build_config(args), root)
    if args.fold is not None:
        experiment.evaluate_folds([args.fold])
        return 0
    experiment.evaluate_folds(experiment.plan.numbers)
    with working("pooling the folds and writing the report"):
        summary = experiment.pool()
    report = experiment.config.report_path
    if summary is None:
        print_lines(f"evaluation: {report} is still valid, nothing to do")
    else:
        print_lines(*summary.terminal_lines())
    print_lines(f"report: {report} ({time.monotonic() - start:.0f} s)", flush=True)
    return 0


def parse_config(arguments: list[str]) -> EvaluationConfig:
    """The settings of the command line; ConfigError for numbers out of range."""
    return build_config(build_parser().parse_args(arguments))


def build_config(args: argparse.Namespace) -> EvaluationConfig:
    """The settings of the command line; ConfigError for numbers out of range."""
    check_numbers(args)
    check_trackers(args.trackers, "--trackers")
    device = cli.pick_device(args.device)
    (checkpoint, strength), *others = pair_strengths(args.lora_checkpoint, args.strength, "--lora_checkpoint")
    return EvaluationConfig(
        checkpoint=checkpoint,
        strength=strength,
        other_adapters=tuple(others),
        video_root=args.test_videos,
        clips_tsv=args.clips,
        features_dir=args.features,
        output_dir=args.output or default_output([(checkpoint, strength), *others]),
        sampling=SamplingConfig(args.seed, args.samples, args.steps, args.guidance, args.batch_size),
        weights=args.weights,
        offline=cli.is_offline(args.offline),
        general_videos=args.general_videos,
        model=args.model,
        strengths=strengths_of_sweep(args),
        include_training=args.include_training,
        max_clips=args.max_clips,
        report_clips=args.report_clips,
        metrics=args.metrics,
        check_data=args.check_data,
        allow_outside=args.allow_outside,
        trackers=args.trackers,
        project=args.project,
        device=device,
        dtype=fast_dtype(device),
    )


def check_numbers(args: argparse.Namespace) -> None:
    """ConfigError for numbers out of range."""
    for flag in ("samples", "steps", "max_clips", "report_clips", "batch_size"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise ConfigError(f"--{flag} {value}: at least 1")
    if args.guidance is not None and not 1 <= args.guidance < math.inf:
        raise ConfigError(f"--guidance {args.guidance:g}: a number from 1, for none, up; 4.5 is usual")


def print_summary(evaluation: Evaluation) -> None:
    """Print the verdict, every metric, what was forgotten, the strength to use, and the metrics without a value."""
    prompts = "" if evaluation.prompt_results is None else evaluation.prompt_results.sentence
    summary = summarize(evaluation.results, evaluation.inputs.no_general_reason, prompts=prompts)
    for line in summary.terminal_lines() + uncomputed_metrics.terminal_lines(evaluation.results[HELD_OUT].not_computed):
        print_lines(line)


def strengths_of_sweep(args: argparse.Namespace) -> tuple[float, ...] | None:
    """The strengths to try with one adapter as trained, None for the default ones; ConfigError for others."""
    if not args.strength and len(args.lora_checkpoint) == 1:
        return None if args.strengths is None else parse_strengths(args.strengths)
    if args.strengths:
        raise ConfigError(
            f"--strengths {args.strengths}: it tries one adapter at several strengths; leave it out with --strength or "
            "several adapters"
        )
    return ()


def parse_strengths(text: str) -> tuple[float, ...]:
    """The strengths in a list such as `0.5,0.75`; ConfigError for anything else."""
    try:
        values = [float(item) for item in text.split(",") if item.strip()]
    except ValueError:
        raise ConfigError(f"--strengths {text}: numbers with commas between them, such as 0.5,0.75") from None
    return strengths_to_try(values)


def parse_names(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def default_output(adapters: Sequence[tuple[Path, Strength]]) -> Path:
    """The folder of the results: the experiment's for one adapter as trained, else one in that of the first."""
    folder = experiment_folder(adapters[0][0])
    if len(adapters) == 1 and adapters[0][1] == AS_TRAINED:
        return folder
    return folder / "_and_".join(f"{adapter_name(path)}_{strength.plain()}" for path, strength in adapters)


def experiment_folder(checkpoint: Path) -> Path:
    """The folder of the experiment that an adapter belongs to; for a file elsewhere a folder beside it."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "lora_checkpoints" else folder / f"{checkpoint.stem}_evaluation"


if __name__ == "__main__":
    cli.run(main)
