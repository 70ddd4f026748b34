"""Command-line flags of the pipeline, and the job that they describe."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mmaudio import cli
from mmaudio.errors import ConfigError, DataError
from mmaudio.model.spec import MODELS, model_spec
from mmaudio.pipeline.job import PRECISIONS, SPLIT_KEYS, STAGES, Job
from mmaudio.utils.setting_checks import AUTO, parse_folds

MODES = {"16k": "small_16k", "44k": "small_44k"}
DEMO_OUTPUT = Path("demo_output")
SPLIT_FLAGS: dict[str, dict[str, Any]] = {
    "--recursive": {"action": "store_true", "help": "search sub-folders for videos too"},
    "--captions": {
        "type": Path,
        "help": "a table (.tsv, .csv, .jsonl) of captions by video or by clip",
    },
    "--audio-track": {"type": int, "default": 0, "help": "which sound track of the videos, counted from 0"},
    "--video-track": {
        "type": int,
        "help": "which picture of a file with several, counted from 0; the default one, else the longest that moves",
    },
    "--scenes": {"action": "store_true", "help": "no clip across a shot boundary (needs the extra `scenes`)"},
    "--flags": {"action": "store_true", "help": "note speech and music in each clip (needs the extra `flags`)"},
    "--keep-all": {"action": "store_true", "help": "keep clips that break a rule of config/split_config.yaml"},
    "--report": {"action": "store_true", "help": "write a page that shows every clip, used or left out"},
    "--timeout-per-video": {"type": float, "help": "seconds for a look through one file; by its size if not given"},
    "--workers": {"type": int, "help": "files that splitting looks through at once; one per core if not given"},
    "--val_ratio": {"type": float, "help": "share of the videos for validation; 0.1 if not given"},
    "--test_ratio": {"type": float, "help": "share of the videos for the test; 0.2, for the demo 0.3, if not given"},
}
"""Flags that are passed to splitting unchanged."""
RESERVED_KEYS = {
    "model": "--model",
    "clips_tsv": "--output",
    "features_dir": "--output",
    "output_dir": "--output",
    "video_root": "the folder of videos",
    "weights": "--weights",
    "offline": "--offline",
    "resume": "--from train",
    "folds": "--folds",
    "fold": "--folds",
}
"""Training settings that other stages need too, with the flag that sets them for all stages."""


def build_parser() -> cli.Parser:
    """Parser of the pipeline's command line."""
    parser = cli.Parser("Fine-tune MMAudio on a folder of videos and report whether it helped.")
    if not parser.prog.startswith("mmaudio-lora"):
        parser.prog = "run_lora_pipeline.sh"
    parser.single_flags = ("--captions",)
    parser.usage = f"{parser.prog} [FOLDER | --demo] [flags] [-- HYDRA_OVERRIDE ...]"
    parser.add_argument("folder", nargs="?", type=Path, help="the folder of videos")
    parser.add_argument("--demo", action="store_true", help="make sample videos and run the whole job on them")
    parser.add_argument("--mode", choices=sorted(MODES), help="16k or 44k: small_16k or small_44k")
    parser.add_argument("--model", choices=list(MODELS), help="the base model; small_16k, for the demo tiny_16k")
    parser.add_argument("--gpus", type=int, default=1, help="how many GPUs extraction and training use")
    parser.add_argument("--output", type=Path, help="the folder for clips, features and results")
    parser.add_argument("--prompt", help="the caption of videos that have none of their own")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the encoders in extraction; auto: bf16 on a GPU, float32 on a CPU",
    )
    parser.add_argument(
        "--allow-outside", action="store_true", help="extract videos outside of the folder that the table names"
    )
    parser.add_weights_flags()
    for flag, options in SPLIT_FLAGS.items():
        parser.add_argument(flag, **options)
    parser.add_argument(
        "--folds",
        default=AUTO,
        metavar="auto|on|off|K",
        help="train so often, each time without some of the videos, for a verdict over all of them, then on all; auto: "
        "on a GPU with 3 to 12 videos",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="ADAPTER",
        help="train on from this adapter, of the same base, not from a new one",
    )
    parser.add_argument("--from", dest="first", choices=STAGES, help="begin anew at this stage")
    parser.add_argument("--yes", action="store_true", help="go on even where the plan says that it takes long")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--setup-only", action="store_true", help="make the environment and stop")
    parser.add_argument("--parse-only", action="store_true", help=argparse.SUPPRESS)
    return parser


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Parse the flags before `--`; ConfigError for a setting of training among them."""
    parser = build_parser()
    parsed, others = parser.parse_known_args(arguments)
    folder = "" if parsed.folder is None or parsed.folder.exists() else str(parsed.folder)
    for text in (*others, folder):
        if re.match(r"[+~]*[A-Za-z_][\w.@/]*=", text):
            raise ConfigError(f"{text}: settings of training come after --, as in: {parser.prog} ... -- {text}")
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return parsed


def build_job(arguments: argparse.Namespace, overrides: list[str]) -> Job:
    """Build the job from the command line; ConfigError for contradictions or without videos."""
    if arguments.mode and arguments.model:
        raise ConfigError("--mode and --model both name the model; give one of them")
    if arguments.gpus < 1:
        raise ConfigError(f"--gpus {arguments.gpus}: at least 1")
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"{text!r} after --: training takes Hydra overrides there, such as max_steps=500")
        if (key := text.split("=", 1)[0].lstrip("+~")) in RESERVED_KEYS:
            flag = RESERVED_KEYS[key]
            raise ConfigError(f"{text} after --: only training would use it; {flag} sets it for every stage")
    if arguments.demo and arguments.folder:
        raise ConfigError("--demo makes its own videos; give it or a folder")
    if not arguments.demo and not arguments.folder:
        raise ConfigError("no folder of videos; give one, or --demo for sample videos")
    output = arguments.output or (DEMO_OUTPUT if arguments.demo else None)
    if not arguments.demo and not arguments.folder.is_dir():
        kind = "a file" if arguments.folder.exists() else "not there"
        raise DataError(f"{arguments.folder}: {kind}; a folder of videos is expected")
    split_settings = [text for text in overrides if text.lstrip("+~").startswith(SPLIT_KEYS)]
    model = arguments.model or MODES[arguments.mode or "16k"]
    if arguments.demo and not (arguments.model or arguments.mode):
        model = "tiny_16k"
    return Job(
        videos=(output or DEMO_OUTPUT) / "videos" if arguments.demo else arguments.folder,
        model=model_spec(model).name,
        output=output,
        demo=arguments.demo,
        prompt=arguments.prompt,
        gpus=arguments.gpus,
        precision=arguments.precision,
        weights=arguments.weights,
        offline=cli.is_offline(arguments.offline),
        first_stage=arguments.first,
        init_from=arguments.init_from,
        folds=parse_folds("--folds ", arguments.folds),
        overrides=tuple(text for text in overrides if not text.lstrip("+~").startswith("split.")),
        split_arguments=(*split_flags(arguments), *split_settings),
        debug=arguments.debug,
        allow_outside=arguments.allow_outside,
    )


def split_flags(arguments: argparse.Namespace) -> list[str]:
    """Format the flags for splitting that differ from their defaults."""
    flags: list[str] = []
    for flag, options in SPLIT_FLAGS.items():
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
        if value is not None and value is not False and value != options.get("default"):
            flags += [flag] if value is True else [flag, str(value)]
    return flags
