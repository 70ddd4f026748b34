"""A training as the page asks for it, and what can be said before it starts: the clips, and the plan with its times."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mmaudio import cli
from mmaudio.app.config import AppConfig
from mmaudio.app.detached_job import DetachedJob
from mmaudio.app.folders import check_name
from mmaudio.data.caption_table import MAX_CHARACTERS
from mmaudio.data.clip_table import left_out_path, read_clips, read_left_out
from mmaudio.data.clips import Clip, LeftOut
from mmaudio.errors import ConfigError, DataError
from mmaudio.model.spec import model_spec
from mmaudio.pipeline.flags import build_job, parse_flags
from mmaudio.pipeline.job import Job, split_command
from mmaudio.utils.hydra_quote import quote_value

PLAN_SECONDS = 1800.0
"""Longest time that a look at a folder or a plan may take."""
MAX_STEPS, MAX_RANK = 1_000_000, 1024


@dataclass(frozen=True)
class TrainRequest:
    """Videos, name and settings; ConfigError for what is out of range. None: as the pipeline chooses."""

    videos: str
    """A folder below that of videos."""
    name: str
    model: str
    steps: int | None = None
    rank: int | None = None
    learning_rate: float | None = None
    prompt: str = ""
    recursive: bool = False
    keep_all: bool = False
    seconds: float | None = None
    val_ratio: float | None = None
    test_ratio: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        model_spec(self.model)
        if len(self.prompt) > MAX_CHARACTERS:
            raise ConfigError(f"a caption of {len(self.prompt)} characters; at most {MAX_CHARACTERS}")
        for label, value, limit in (("steps", self.steps, MAX_STEPS), ("rank", self.rank, MAX_RANK)):
            if value is not None and not 1 <= value <= limit:
                raise ConfigError(f"{label} {value}: 1 to {limit}")

    def arguments(self, config: AppConfig) -> list[str]:
        """The arguments of `mmaudio-lora run`."""
        folder = config.folders.find_video_folder(self.videos)
        values = {"prompt": self.prompt or None, "val_ratio": self.val_ratio, "test_ratio": self.test_ratio}
        flags = [f"--{name}={value}" for name, value in values.items() if value is not None]
        flags += ["--recursive"] * self.recursive + ["--keep-all"] * self.keep_all
        settings = {
            "exp_id": self.name.strip(),
            "max_steps": self.steps,
            "lora.rank": self.rank,
            "learning_rate": self.learning_rate,
            "split.seconds": self.seconds,
            "split.stride": self.seconds,
        }
        overrides = [f"{name}={quote_value(value)}" for name, value in settings.items() if value is not None]
        model, output = f"--model={self.model}", f"--output={self.job(config).root}"
        return [str(folder), model, output, *config.weight_flags, *flags, "--yes", "--", *overrides]

    def job(self, config: AppConfig) -> DetachedJob:
        """The process that does it; its results are in a folder of its name."""
        return DetachedJob(config.folders.output / self.name.strip())


def plan_job(arguments: Sequence[str]) -> Job:
    """The pipeline's job for its arguments."""
    flags, overrides = cli.split_overrides(list(arguments))
    return build_job(parse_flags(flags), overrides)


@dataclass(frozen=True)
class FolderLook:
    """What splitting says of a folder."""

    lines: list[str]
    clips: list[Clip]
    left_out: list[LeftOut]

    def captions(self) -> list[tuple[str, str, int, str]]:
        """Video, split, number of clips and caption of every video that is used."""
        by_video: dict[str, list[Clip]] = {}
        for clip in self.clips:
            by_video.setdefault(clip.video, []).append(clip)
        return [
            (video, "/".join(sorted({clip.split for clip in clips})), len(clips), clips[0].caption)
            for video, clips in by_video.items()
        ]


def look_at_folder(arguments: Sequence[str]) -> FolderLook:
    """Split the folder as the pipeline will, which finds this done; DataError where nothing in it can be used."""
    job = plan_job(arguments)
    status, lines = run_lines(split_command(job))
    left_out = read_left_out(left_out_path(job.clips))
    if status and not left_out:
        raise DataError(lines[-1] if lines else f"{job.videos}: splitting ended with status {status}")
    return FolderLook(lines, [] if status else read_clips(job.clips), left_out)


def describe_plan(arguments: Sequence[str]) -> str:
    """The pipeline's dry run: what it will do and how long it takes."""
    flags, overrides = cli.split_overrides(list(arguments))
    command = [sys.executable, "-m", "mmaudio.pipeline", *flags, "--dry-run", "--", *overrides]
    status, lines = run_lines(command)
    if status:
        raise DataError(lines[-1] if lines else f"the plan ended with status {status}")
    return "\n".join(lines)


def run_lines(command: Sequence[str]) -> tuple[int, list[str]]:
    """Exit status and printed lines of a command."""
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PLAN_SECONDS,
        check=False,
    )
    text = result.stdout.decode("utf-8", "replace")
    return result.returncode, [line.rsplit("\r", 1)[-1] for line in text.split("\n") if line.strip()]
