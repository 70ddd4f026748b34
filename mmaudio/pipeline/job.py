"""The job that a command line asks for: its folders, its flags, and the command of every stage."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmaudio import cli
from mmaudio.errors import ConfigError, DataError
from mmaudio.model.spec import MODELS, model_spec
from mmaudio.utils.hydra_quote import quoted

STAGES = ("split", "extract", "train", "evaluate")
ROOT = Path(__file__).resolve().parents[2]
"""The checkout that holds the stages' scripts."""
MODES = {"16k": "small_16k", "44k": "small_44k"}
PRECISIONS = ("auto", "bf16", "float32")
"""What extraction's encoders may compute in."""
DEMO_OUTPUT = Path("demo_output")
DEMO_SPLIT = ("--test_ratio", "0.3")
"""The demo holds out more videos than a user's folder, so that its intervals are short."""
SPLIT_FLAGS: dict[str, dict[str, Any]] = {
    "--recursive": {"action": "store_true", "help": "search sub-folders for videos too"},
    "--captions": {"type": Path, "help": "a table (.tsv, .csv, .jsonl) of captions by video or by clip"},
    "--audio-track": {"type": int, "default": 0, "help": "which sound track of the videos, counted from 0"},
    "--scenes": {"action": "store_true", "help": "no clip across a shot boundary (needs the extra `scenes`)"},
    "--flags": {"action": "store_true", "help": "note speech and music in each clip (needs the extra `flags`)"},
    "--keep-all": {"action": "store_true", "help": "keep clips that break a rule of config/split_config.yaml"},
    "--report": {"action": "store_true", "help": "write a page that shows every clip, used or left out"},
    "--timeout-per-video": {"type": float, "help": "seconds for a look through one file; by its size if not given"},
}
"""What is handed on to splitting as it is."""
OWN_KEYS = {
    "model": "--model",
    "clips_tsv": "--output",
    "features_dir": "--output",
    "output_dir": "--output",
    "video_root": "the folder of videos",
    "weights": "--weights",
    "offline": "--offline",
    "resume": "--from train",
}
"""Settings of training that the other stages have to know too, and what says them to all."""
SPLIT_KEYS = ("split.", "validation.split_ratio=")
"""How the settings begin that splitting takes."""


@dataclass(frozen=True)
class Job:
    """What is asked for: the videos, the model, where results go, and what training is told."""

    videos: Path
    model: str
    output: Path | None
    demo: bool = False
    prompt: str | None = None
    gpus: int = 1
    precision: str = PRECISIONS[0]
    """What extraction's encoders compute in."""
    weights: Path | None = None
    offline: bool = False
    """Whether absent weights are an error, rather than fetched."""
    first: str | None = None
    """The stage to begin anew from; None continues."""
    overrides: tuple[str, ...] = ()
    """Hydra overrides for training."""
    split: tuple[str, ...] = ()
    """Flags and settings for splitting."""
    debug: bool = field(default=False, compare=False)

    @property
    def base(self) -> Path:
        """What the data and output folders lie below."""
        return self.output or Path()

    @property
    def clips(self) -> Path:
        """The table of clips."""
        return self.base / "lora_data" / "clips.tsv"

    @property
    def features(self) -> Path:
        """The folder of feature shards."""
        return self.base / "lora_data" / "features"

    @property
    def exp_id(self) -> str:
        """The experiment's name: the overrides' own, else the folder's and the model's."""
        named = [text.split("=", 1)[1].strip("'\"") for text in self.overrides if _names_experiment(text)]
        folder = re.sub(r"[^\w.-]+", "_", self.videos.resolve().name).lstrip(".-")
        return named[-1] if named else f"{folder}_{self.model}"

    @property
    def experiment(self) -> Path:
        """Where training and evaluation write."""
        return self.base / "output" / self.exp_id


def _names_experiment(override: str) -> bool:
    return override.lstrip("+").startswith("exp_id=")


def parser() -> cli.Parser:
    """The pipeline's command line."""
    made = cli.Parser("Fine-tune MMAudio on a folder of videos and report whether it helped.")
    made.prog = "run_lora_pipeline.sh"
    made.usage = "run_lora_pipeline.sh [FOLDER | --demo] [flags] [-- HYDRA_OVERRIDE ...]"
    made.add_argument("folder", nargs="?", type=Path, help="the folder of videos")
    made.add_argument("--demo", action="store_true", help="make sample videos and run the whole job on them")
    made.add_argument("--mode", choices=sorted(MODES), help="16k or 44k: small_16k or small_44k")
    made.add_argument("--model", choices=list(MODELS), help="the base model; small_16k, for the demo tiny_16k")
    made.add_argument("--gpus", type=int, default=1, help="how many GPUs extraction and training use")
    made.add_argument("--output", type=Path, help="the folder for clips, features and results")
    made.add_argument("--prompt", help="the caption of videos that have none of their own")
    made.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the encoders in extraction; auto: bf16 on a GPU, float32 on a CPU",
    )
    made.add_weights_flags()
    for flag, options in SPLIT_FLAGS.items():
        made.add_argument(flag, **options)
    made.add_argument("--from", dest="first", choices=STAGES, help="begin anew at this stage")
    made.add_argument("--yes", action="store_true", help="go on even where the plan says that it takes long")
    made.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    made.add_argument("--setup-only", action="store_true", help="make the environment and stop")
    made.add_argument("--parse-only", action="store_true", help=argparse.SUPPRESS)
    return made


def read_job(arguments: argparse.Namespace, overrides: list[str]) -> Job:
    """The job that the command line asks for; ConfigError where it contradicts itself or names no videos."""
    if arguments.mode and arguments.model:
        raise ConfigError("--mode and --model both name the model; give one of them")
    if arguments.gpus < 1:
        raise ConfigError(f"--gpus {arguments.gpus}: at least 1")
    for text in overrides:
        if "=" not in text:
            raise ConfigError(f"{text!r} after --: training takes Hydra overrides there, such as max_steps=500")
        if (key := text.split("=", 1)[0].lstrip("+~")) in OWN_KEYS:
            raise ConfigError(f"{text} after --: only training would know it; {OWN_KEYS[key]} says it to every stage")
    if arguments.demo and arguments.folder:
        raise ConfigError("--demo makes its own videos; give it or a folder")
    if not arguments.demo and not arguments.folder:
        raise ConfigError("no folder of videos; give one, or --demo for sample videos")
    output = arguments.output or (DEMO_OUTPUT if arguments.demo else None)
    if not arguments.demo and not arguments.folder.is_dir():
        kind = "a file" if arguments.folder.exists() else "not there"
        raise DataError(f"{arguments.folder}: {kind}; a folder of videos is expected")
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
        first=arguments.first,
        overrides=tuple(text for text in overrides if not text.lstrip("+~").startswith("split.")),
        split=(*split_flags(arguments), *(text for text in overrides if text.lstrip("+~").startswith(SPLIT_KEYS))),
        debug=arguments.debug,
    )


def split_flags(arguments: argparse.Namespace) -> list[str]:
    """The flags for splitting that differ from their defaults, as its own command takes them."""
    found: list[str] = []
    for flag, options in SPLIT_FLAGS.items():
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
        if value not in (None, False, options.get("default")):
            found += [flag] if value is True else [flag, str(value)]
    return found


def commands(job: Job) -> dict[str, list[str]]:
    """The command of every stage, as a user could type it from anywhere."""
    python = [sys.executable]
    if job.gpus > 1:
        python += ["-m", "mmaudio.pipeline.torchrun", "--standalone", f"--nproc-per-node={job.gpus}"]
    weights = [] if job.weights is None else ["--weights", str(job.weights)]
    weights += ["--offline"] if job.offline else []
    prompt = [] if job.prompt is None else ["--prompt", job.prompt]
    precision = [] if job.precision == PRECISIONS[0] else ["--precision", job.precision]
    debug = ["--debug"] if job.debug else []
    data = ["--input_tsv", str(job.clips), "--video_root", str(job.videos), "--output_dir", str(job.features)]
    split = ["--input_dir", str(job.videos), "--output_tsv", str(job.clips)]
    split += DEMO_SPLIT if job.demo else ()
    return {
        "split": [
            sys.executable,
            script_path("training/split_videos_for_finetuning.py"),
            *split,
            *prompt,
            *job.split,
            *debug,
        ],
        "extract": [
            *python,
            script_path("training/extract_features_finetuning.py"),
            *data,
            "--model",
            job.model,
            *precision,
            *weights,
            *debug,
        ],
        "train": [*python, script_path("train_lora.py"), *training_overrides(job), *debug],
        "evaluate": [
            sys.executable,
            script_path("evaluate_lora.py"),
            "--lora_checkpoint",
            str(adapter(job)),
            "--test_videos",
            str(job.videos),
            "--compare_original",
            "--clips",
            str(job.clips),
            "--features",
            str(job.features),
            *weights,
            *debug,
        ],
    }


def training_overrides(job: Job) -> list[str]:
    """What training is told: the job's places first, then what the user wrote after `--`."""
    made = {
        "exp_id": job.exp_id,
        "model": job.model,
        "custom_finetune": True,
        "clips_tsv": job.clips,
        "features_dir": job.features,
        "output_dir": job.base / "output",
        "video_root": job.videos,
        **({} if job.weights is None else {"weights": job.weights}),
        **({"offline": True} if job.offline else {}),
    }
    own = [text for text in job.overrides if not _names_experiment(text)]
    given = {text.split("=", 1)[0].lstrip("+~") for text in own}
    if not has_gpu() and "preset" not in given:
        made["preset"] = "quick"
    return [f"{key}={quoted(value)}" for key, value in made.items() if key not in given] + own


def adapter(job: Job) -> Path:
    """The best adapter that training writes."""
    return job.experiment / "lora_checkpoints" / "best_lora.pt"


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def script_path(name: str) -> str:
    """A stage's script as a command names it; ConfigError outside a checkout."""
    path = ROOT / name
    if not path.is_file():
        raise ConfigError(f"{path}: not there; run the pipeline from a checkout of the repository")
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
