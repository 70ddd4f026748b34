"""Extraction of all clips' features with the frozen encoders of video, text and audio.

    python training/extract_features_finetuning.py --input_tsv ./lora_data/clips.tsv --video_root ./my_videos \\
        --output_dir ./lora_data/features --mode 16k

Each source video is decoded once. A second run, or one after a kill, writes only the shards that are missing or stale.
Several processes on one output folder share the videos, those of torchrun (`--nproc-per-node`, `--nnodes`) and others.

--precision bf16 on a CPU, error against float32 over the features' root mean square (mean and largest), with random
weights: small_16k CLIP 0.011 and 0.046, Synchformer 0.006 and 0.031; tiny_16k 0.004 and 0.015, 0.003 and 0.013
(`python -m benchmarks.features VIDEO --precision MODEL`; an AMD EPYC with AVX512-BF16).
"""

from __future__ import annotations

from mmaudio import cli

if __name__ == "__main__":
    cli.handle_signals()  # the imports below take seconds

import argparse
import os
from pathlib import Path

import torch

from mmaudio.data.feature_store import encoder_names
from mmaudio.errors import ConfigError
from mmaudio.features.encoders import ENCODER_COMPONENTS
from mmaudio.features.extraction import ExtractionConfig, ExtractionReport, extract
from mmaudio.features.extraction_plan import ShardPlan
from mmaudio.generation.sampler import fast_dtype
from mmaudio.model.cost_model import extraction_flops
from mmaudio.model.spec import MODELS, model_spec
from mmaudio.pipeline.flags import MODES
from mmaudio.pipeline.job import PRECISIONS
from mmaudio.utils.progress import progress
from mmaudio.utils.terminal import print_lines
from mmaudio.weights.store import fetch_files

LIGHT_FLOPS = 1e12
"""Operations per clip below which a CPU takes about as long to decode as to encode."""


def build_parser() -> cli.Parser:
    """Build the command line."""
    parser = cli.Parser("Extract the features of all clips of a table.")
    parser.add_argument("--input_tsv", type=Path, default=Path("lora_data/clips.tsv"), help="the table of clips")
    parser.add_argument("--video_root", type=Path, required=True, help="the folder of videos")
    parser.add_argument("--output_dir", type=Path, default=Path("lora_data/features"), help="where the features go")
    parser.add_argument("--mode", choices=sorted(MODES), help="16k or 44k: for small_16k or the 44.1 kHz models")
    parser.add_argument("--model", choices=list(MODELS), help="the base model, instead of --mode; small_16k if neither")
    parser.add_weights_flags()
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of CLIP and Synchformer; auto: bf16 on a GPU, float32 on a CPU, and features of either stay valid",
    )
    parser.add_argument(
        "--verify", action="store_true", help="list stale, missing and non-finite entries and write them again"
    )
    parser.add_argument(
        "--allow-outside", action="store_true", help="take videos outside of --video_root that the table names"
    )
    return parser


def select_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Select the encoders' dtype for --precision; ConfigError where the device has no instructions for it."""
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else fast_dtype(device)
    if precision == "bf16" and fast_dtype(device) != torch.bfloat16:
        raise ConfigError(f"--precision bf16: {device} has no instructions for it here; take auto or float32")
    return torch.bfloat16 if precision == "bf16" else torch.float32


def select_model(args: argparse.Namespace) -> str:
    """Select the base model from --model and --mode; ConfigError where they contradict each other."""
    if args.model and args.mode and model_spec(args.model).codec.name != args.mode:
        raise ConfigError(f"--mode {args.mode} and --model {args.model} contradict each other; give one of them")
    return args.model or MODES[args.mode or "16k"]


def build_config(args: argparse.Namespace, model: str) -> ExtractionConfig:
    """Build the configuration of this process; torchrun's ranks get a GPU each."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = cli.pick_device(args.device)
    if device.type == "cuda" and device.index is None and world_size > 1:
        device = cli.pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return ExtractionConfig(
        model,
        args.weights,
        device,
        dtype=select_dtype(args.precision, device),
        exact_dtype=args.precision != "auto",
        rank=rank,
        world_size=world_size,
        check_values=args.verify,
        allow_outside=args.allow_outside,
    )


def print_invalid(plans: list[ShardPlan]) -> None:
    """Print the shards that are not valid, with the reasons."""
    for plan in plans:
        print_lines(f"  {plan.header.video}: {plan.reason}")
    print_lines(f"{len(plans)} entries to mend" if plans else "every entry is there, up to date and finite", flush=True)


def print_report(report: ExtractionReport, output_dir: Path) -> None:
    """Print the numbers of videos and clips, and what was left out."""
    total = report.valid + report.text_only + report.extracted + report.by_other_processes
    text_only = f", {report.text_only} whose captions alone changed" if report.text_only else ""
    by_others = f", {report.by_other_processes} by other processes" if report.by_other_processes else ""
    print_lines(f"{total} videos = {report.extracted} extracted now + {report.valid} still valid{text_only}{by_others}")
    for row in report.left_out:
        print_lines(f"  left out: {row.video}: {row.reason}")
    print_lines(f"{output_dir}: features of {report.clips} clips, {len(report.left_out)} videos left out", flush=True)


def main(arguments: list[str]) -> int:
    """Run the command."""
    args = build_parser().parse_args(arguments)
    model = select_model(args)
    spec, config = model_spec(model), build_config(args, model)
    if torch.device(config.device).type == "cpu" and extraction_flops(spec) < LIGHT_FLOPS:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one core decodes meanwhile
    print_lines(f"extracting for {model} ({', '.join(encoder_names(spec).values())}) on {config.device}", flush=True)
    fetch_files(model, tuple(ENCODER_COMPONENTS.values()), args.weights, cli.is_offline(args.offline))
    report = extract(
        args.input_tsv,
        args.video_root,
        args.output_dir,
        config,
        lambda plans: progress(plans, len(plans), "videos"),
        print_invalid if args.verify else lambda plans: None,
    )
    print_report(report, args.output_dir)
    return 0


if __name__ == "__main__":
    cli.run(main)
