"""Generation for the page: takes with the adapters, and the base's takes of the same seeds beside them."""

from __future__ import annotations

import csv
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from mmaudio.app.config import AppConfig
from mmaudio.app.experiment_list import find_adapter, find_experiment
from mmaudio.app.folders import GENERATED
from mmaudio.errors import ConfigError
from mmaudio.generation.generation_flags import DEFAULT_MODEL, build_parser, check_flags
from mmaudio.generation.take_ranking import RANKINGS
from mmaudio.model.spec import model_spec

MAX_TAKES = 16
MAX_PROMPT = 2000
"""Characters of a prompt."""
PLAYED = (".mp4", ".m4v", ".mov", ".webm")
"""Suffixes of films that browsers play."""


@dataclass(frozen=True)
class TakeRequest:
    """What a user asks for; ConfigError for what the command would refuse."""

    video: Path | None = None
    prompt: str = ""
    negative_prompt: str = ""
    adapters: tuple[tuple[str, float], ...] = ()
    """Names of experiments, and their strengths."""
    model: str = ""
    """The base model, where no adapter names it."""
    seed: int = 0
    takes: int = 1
    rank_by: str = ""
    seconds: float | None = None
    steps: int | None = None
    guidance: float | None = None
    has_base: bool = True
    """Whether the base is generated beside the adapters."""

    def __post_init__(self) -> None:
        if not 1 <= self.takes <= MAX_TAKES:
            raise ConfigError(f"{self.takes} takes: 1 to {MAX_TAKES} at once")
        if max(len(self.prompt), len(self.negative_prompt)) > MAX_PROMPT:
            raise ConfigError(f"a prompt of more than {MAX_PROMPT} characters; the text encoder reads some hundreds")
        if self.rank_by and self.rank_by not in RANKINGS:
            raise ConfigError(f"no ranking {self.rank_by[:40]}; there are {', '.join(RANKINGS)}")
        if self.model:
            model_spec(self.model)

    def flags(self, config: AppConfig, output: Path) -> list[str]:
        """The arguments of `mmaudio-lora generate`."""
        values = {
            "video": self.video,
            "prompt": self.prompt,
            "negative-prompt": self.negative_prompt,
            "model": None if self.adapters else self.model or DEFAULT_MODEL,
            "seed": self.seed,
            "samples": self.takes,
            "rank-by": self.rank_by or None,
            "keep": self.takes if self.rank_by else None,
            "seconds": self.seconds,
            "steps": self.steps,
            "guidance": self.guidance,
            "device": config.device,
            "output": output,
        }
        flags = [f"--{name}={value}" for name, value in values.items() if value is not None]
        for name, strength in self.adapters:
            flags += [f"--adapter={find_adapter(config.folders, name)}", f"--strength={strength:g}"]
        return flags + config.weight_flags


@dataclass(frozen=True)
class Take:
    """The files of one take."""

    seed: int
    sound: Path
    film: Path | None
    base_sound: Path | None = None
    base_film: Path | None = None
    score: str = ""
    """By the ranking; empty without one."""


def generate_pairs(request: TakeRequest, config: AppConfig, report: Callable[[str], None]) -> list[Take]:
    """Generate the takes, the best first where they are ranked; `report` is told what is being done.

    Raises as `mmaudio-lora generate`.
    """
    folder = config.folders.output / GENERATED / f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    report("generating with the adapter" if request.adapters else f"generating with {request.model or DEFAULT_MODEL}")
    takes = run_generation(request, config, folder / "adapted")
    if not (request.adapters and request.has_base):
        return takes
    report("generating the base's takes of the same seeds")
    model = find_experiment(config.folders, request.adapters[0][0]).model()
    base = replace(request, adapters=(), rank_by="", model=model)
    by_seed = {take.seed: take for take in run_generation(base, config, folder / "base")}
    return [replace(take, base_sound=by_seed[take.seed].sound, base_film=by_seed[take.seed].film) for take in takes]


def run_generation(request: TakeRequest, config: AppConfig, output: Path) -> list[Take]:
    """Generate one set of takes by the functions of the command."""
    from mmaudio.generation.__main__ import plan_jobs, run_jobs
    from mmaudio.generation.job_generator import find_ranking

    args = build_parser().parse_args(request.flags(config, output))
    check_flags(args)
    ranking = find_ranking(args)
    plan = plan_jobs(args)
    run_jobs(plan.jobs, args, ranking)
    files = plan.jobs[0].outputs
    seeds, scores = list(range(request.seed, request.seed + request.takes)), [""] * request.takes
    if files.table is not None:
        seeds, scores = read_ranks(files.table)
    return [
        Take(seed, *split_files(paths), score=score)
        for seed, score, paths in zip(seeds, scores, files.by_sample, strict=True)
    ]


def read_ranks(table: Path) -> tuple[list[int], list[str]]:
    """Seeds and scores of ranked takes, the best first."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[1:]
    return [int(row[1]) for row in rows], [row[2] for row in rows]


def split_files(paths: Sequence[Path]) -> tuple[Path, Path | None]:
    """The sound and, where there is one that browsers play, the film."""
    return paths[0], next((path for path in paths if path.suffix.lower() in PLAYED), None)
