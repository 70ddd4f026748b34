"""Extract the features of all clips: what the frozen encoders make of picture, words and sound.

    python training/extract_features_finetuning.py --input_tsv ./lora_data/clips.tsv --video_root ./my_videos \\
        --output_dir ./lora_data/features --mode 16k

One decoding pass per source video; a second run, or one after a kill, redoes only what is not valid any more. Several
processes on one output folder share the videos, those of torchrun (`--nproc-per-node`, `--nnodes`) and any others.

--precision bf16 on a CPU: mean and largest error over the features' root mean square, against float32, with random
weights: small_16k CLIP 0.011 and 0.046, Synchformer 0.006 and 0.031; tiny_16k 0.004 and 0.015, 0.003 and 0.013
(`python -m benchmarks.features VIDEO --precision MODEL`; an AMD EPYC with AVX512-BF16).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mmaudio import cli
from mmaudio.data.feature_store import encoder_names
from mmaudio.errors import ConfigError
from mmaudio.features.encoders import PARTS
from mmaudio.features.extraction import Extraction, extract
from mmaudio.features.extraction_plan import Job
from mmaudio.generation.sampler import fast_dtype
from mmaudio.model.cost_model import extraction_flops
from mmaudio.model.spec import MODELS, model_spec
from mmaudio.pipeline.job import MODES, PRECISIONS
from mmaudio.utils.progress import progress
from mmaudio.weights.store import fetch

LIGHT = 1e12
"""Operations per clip below which a processor spends about as long on decoding as on encoding."""


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Extract the features of all clips of a table.")
    made.add_argument("--input_tsv", type=Path, default=Path("lora_data/clips.tsv"), help="the table of clips")
    made.add_argument("--video_root", type=Path, required=True, help="the folder of videos")
    made.add_argument("--output_dir", type=Path, default=Path("lora_data/features"), help="where the features go")
    made.add_argument("--mode", choices=sorted(MODES), help="16k or 44k: for small_16k or the 44.1 kHz models")
    made.add_argument("--model", choices=list(MODELS), help="the base model, instead of --mode; small_16k if neither")
    made.add_weights_flags()
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of CLIP and Synchformer; auto: bf16 on a GPU, float32 on a CPU, and features of either stay valid",
    )
    made.add_argument("--verify", action="store_true", help="list stale, missing and non-finite entries and mend them")
    return made


def precision(asked: str, device: torch.device) -> torch.dtype:
    """What the encoders compute in; ConfigError where the machine has no instructions for what is asked."""
    if asked == "auto":
        return torch.float32 if device.type == "cpu" else fast_dtype(device)
    if asked == "bf16" and fast_dtype(device) != torch.bfloat16:
        raise ConfigError(f"--precision bf16: {device} has no instructions for it here; take auto or float32")
    return torch.bfloat16 if asked == "bf16" else torch.float32


def said(jobs: list[Job]) -> None:
    """List what is not valid."""
    for job in jobs:
        print(f"  {job.wanted.video}: {job.why}")
    print(f"{len(jobs)} entries to mend" if jobs else "every entry is there, up to date and finite", flush=True)


def main(arguments: list[str]) -> int:
    """Extract as `arguments` ask for."""
    args = parser().parse_args(arguments)
    model = args.model or MODES[args.mode or "16k"]
    if args.model and args.mode and model_spec(args.model).codec.name != args.mode:
        raise ConfigError(f"--mode {args.mode} and --model {args.model} contradict each other; give one of them")
    share = (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    device = cli.pick_device(args.device)
    if device.type == "cuda" and device.index is None and share[1] > 1:
        device = cli.pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    if device.type == "cpu" and extraction_flops(model_spec(model)) < LIGHT:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one core decodes meanwhile
    how = Extraction(
        model, args.weights, device, precision(args.precision, device), args.precision != "auto", share, args.verify
    )
    names = ", ".join(encoder_names(model_spec(model)).values())
    print(f"extracting for {model} ({names}) on {device}", flush=True)
    fetch(model, tuple(PARTS.values()), args.weights, cli.is_offline(args.offline))
    report = extract(
        args.input_tsv,
        args.video_root,
        args.output_dir,
        how,
        lambda jobs: progress(jobs, len(jobs), "videos"),
        said if args.verify else lambda jobs: None,
    )
    total = report.valid + report.texts + report.made + report.others
    texts = f", {report.texts} whose captions alone changed" if report.texts else ""
    others = f", {report.others} by other processes" if report.others else ""
    print(f"{total} videos = {report.made} extracted now + {report.valid} still valid{texts}{others}")
    for row in report.left_out:
        print(f"  left out: {row.video}: {row.reason}")
    print(f"{args.output_dir}: features of {report.clips} clips, {len(report.left_out)} videos left out", flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
