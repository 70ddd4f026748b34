"""A pipeline job: its folders, and the command of every stage."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mmaudio.utils.checkout import ROOT, SCRIPTS
from mmaudio.utils.hydra_quote import quote_value
from mmaudio.utils.setting_checks import AUTO

STAGES = tuple(SCRIPTS)
DEMO_SCRIPT = "training/make_demo_videos.py"
PRECISIONS = ("auto", "bf16", "float32")
"""Precisions of the encoders in extraction."""
DEMO_SPLIT = ("--test_ratio", "0.3")
"""The demo holds out a larger share of its videos than the default, for narrower confidence intervals."""
SPLIT_KEYS = ("split.", "validation.split_ratio=")
"""Prefixes of the settings of splitting."""


@dataclass(frozen=True)
class Job:
    """Inputs, outputs and settings of one pipeline run."""

    videos: Path
    model: str
    output: Path | None
    demo: bool = False
    prompt: str | None = None
    gpus: int = 1
    precision: str = PRECISIONS[0]
    """Precision of the encoders in extraction."""
    weights: Path | None = None
    offline: bool = False
    """Whether absent weights are an error instead of being fetched."""
    first_stage: str | None = None
    """First stage to run again from scratch; None continues."""
    overrides: tuple[str, ...] = ()
    """Hydra overrides for training."""
    split_arguments: tuple[str, ...] = ()
    """Flags and settings for splitting."""
    init_from: Path | None = None
    """The adapter that training starts from; None: a new one."""
    preset: str | None = None
    """Preset of training for the number of videos; None: the defaults, or `quick` without a GPU."""
    folds: str = AUTO
    """A number of folds, or a word of `utils.setting_checks`."""
    num_folds: int = 0
    """The folds that the plan has counted; 0: none."""
    debug: bool = field(default=False, compare=False)
    allow_outside: bool = False
    """Whether the table of clips may name videos outside of the folder."""

    @property
    def root(self) -> Path:
        """Parent of the data and output folders."""
        return self.output or Path()

    @property
    def clips(self) -> Path:
        """The table of clips."""
        return self.root / "lora_data" / "clips.tsv"

    @property
    def features(self) -> Path:
        """The folder of feature shards."""
        return self.root / "lora_data" / "features"

    @property
    def exp_id(self) -> str:
        """Name of the experiment: from the overrides, else from the folder of videos and the model."""
        exp_ids = [text.split("=", 1)[1].strip("'\"") for text in self.overrides if _sets_exp_id(text)]
        folder = re.sub(r"[^\w.-]+", "_", self.videos.resolve().name).lstrip(".-")
        return exp_ids[-1] if exp_ids else f"{folder}_{self.model}"

    @property
    def experiment(self) -> Path:
        """Output folder of training and evaluation."""
        return self.root / "output" / self.exp_id


def _sets_exp_id(override: str) -> bool:
    return override.lstrip("+").startswith("exp_id=")


def stage_commands(job: Job) -> dict[str, list[str]]:
    """The command of every stage, as a user could type it."""
    debug = ["--debug"] if job.debug else []
    commands = {
        "split": split_command(job),
        "extract": extract_command(job),
        "train": [*_python(job.gpus), script_path(SCRIPTS["train"]), *training_overrides(job)],
        "evaluate": evaluate_command(job),
    }
    return {stage: command + debug for stage, command in commands.items()}


def split_command(job: Job) -> list[str]:
    """Command of the stage `split`."""
    paths = ["--input_dir", str(job.videos), "--output_tsv", str(job.clips)]
    ratios = DEMO_SPLIT if job.demo and DEMO_SPLIT[0] not in job.split_arguments else ()
    prompt = [] if job.prompt is None else ["--prompt", job.prompt]
    script = script_path(SCRIPTS["split"])
    folds = ["--folds"] if job.num_folds else []
    return [*_python(), script, *paths, *ratios, *prompt, *folds, *job.split_arguments]


def extract_command(job: Job) -> list[str]:
    """Command of the stage `extract`."""
    paths = ["--input_tsv", str(job.clips), "--video_root", str(job.videos), "--output_dir", str(job.features)]
    precision = [] if job.precision == PRECISIONS[0] else ["--precision", job.precision]
    script = script_path(SCRIPTS["extract"])
    return [
        *_python(job.gpus),
        script,
        *paths,
        "--model",
        job.model,
        *precision,
        *_outside_flag(job),
        *_weights_flags(job),
    ]


def evaluate_command(job: Job) -> list[str]:
    """Command of the stage `evaluate`."""
    adapter = ["--lora_checkpoint", str(job.experiment if job.num_folds else best_adapter_path(job))]
    videos = ["--test_videos", str(job.videos), "--compare_original"]
    data = ["--clips", str(job.clips), "--features", str(job.features), *_outside_flag(job)]
    flags = [*_tracker_flags(job), *_weights_flags(job)]
    return [*_python(), script_path(SCRIPTS["evaluate"]), *adapter, *videos, *data, *flags]


def _python(processes: int = 1) -> list[str]:
    """This interpreter, with torchrun for several processes."""
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "mmaudio.pipeline.torchrun", "--standalone", f"--nproc-per-node={processes}"]


def _weights_flags(job: Job) -> list[str]:
    return [*([] if job.weights is None else ["--weights", str(job.weights)]), *(["--offline"] if job.offline else [])]


def _tracker_flags(job: Job) -> list[str]:
    """The flags of evaluation for the trackers of training, where the user names them."""
    settings = dict(text.lstrip("+").split("=", 1) for text in job.overrides)
    flags = {"--trackers": "logging.trackers", "--project": "logging.project"}
    values = {flag: settings[key].strip("[]'\"").replace(" ", "") for flag, key in flags.items() if key in settings}
    return [text for pair in values.items() for text in pair]


def _outside_flag(job: Job) -> list[str]:
    return ["--allow-outside"] if job.allow_outside else []


def training_overrides(job: Job) -> list[str]:
    """Hydra overrides for training: the job's paths, then the user's overrides after `--`."""
    job_settings = {
        "exp_id": job.exp_id,
        "model": job.model,
        "custom_finetune": True,
        "clips_tsv": job.clips,
        "features_dir": job.features,
        "output_dir": job.root / "output",
        "video_root": job.videos,
        **({} if job.weights is None else {"weights": job.weights}),
        **({"offline": True} if job.offline else {}),
        **({} if job.init_from is None else {"init_from": job.init_from}),
        **({"folds": job.folds} if job.num_folds else {}),
    }
    user_overrides = [text for text in job.overrides if not _sets_exp_id(text)]
    if preset := job.preset or (None if has_gpu() else "quick"):
        job_settings["preset"] = preset
    user_keys = override_keys(job) - {"exp_id"}
    defaults = [f"{key}={quote_value(value)}" for key, value in job_settings.items() if key not in user_keys]
    return defaults + user_overrides


def override_keys(job: Job) -> set[str]:
    """The settings of training that the user gives."""
    return {text.split("=", 1)[0].lstrip("+~") for text in job.overrides}


def best_adapter_path(job: Job) -> Path:
    """Path of the best adapter that training writes."""
    return job.experiment / "lora_checkpoints" / "best_lora.pt"


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def script_path(name: str) -> str:
    """Path of a stage's script for its command."""
    path = ROOT / name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
