"""The experiments below the folder of results: their adapters, verdicts and reports."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from mmaudio.app.config import AppConfig
from mmaudio.app.folders import GENERATED, Folders, walk_folders
from mmaudio.errors import ConfigError, MMAudioError
from mmaudio.lora.stack import adapter_name
from mmaudio.lora.strength import AS_TRAINED, parse_strength
from mmaudio.report.summary import read_summary

CHECKPOINTS = "lora_checkpoints"
DTYPES = ("fp32", "fp16", "bf16")
"""Kinds of numbers of a merged checkpoint."""
DEPTH = 3
"""Levels below the folder of results: NAME/output/EXPERIMENT of the page, EXPERIMENT of the commands."""


@dataclass(frozen=True)
class Experiment:
    """One training."""

    name: str
    """Its path below the folder of results."""
    folder: Path

    @property
    def adapter(self) -> Path | None:
        """The best adapter."""
        return _file(self.folder / CHECKPOINTS / "best_lora.pt")

    @property
    def report(self) -> Path | None:
        """The page of its evaluation."""
        return _file(self.folder / "report" / "index.html")

    def verdict(self) -> dict[str, str]:
        """Verdict, forgetting and strength by their labels; empty where it was not evaluated."""
        summary = read_summary(self.folder / "metrics.json")
        return {} if summary is None else summary.lines()

    def model(self) -> str:
        """The base model that the adapter names."""
        return "" if self.adapter is None else _base_model(self.adapter, self.adapter.stat().st_mtime_ns)


def find_experiments(folders: Folders) -> list[Experiment]:
    """All experiments with checkpoints, the newest first."""
    paths = [
        path
        for path in walk_folders(folders.output, DEPTH)
        if (path / CHECKPOINTS).is_dir() and path.relative_to(folders.output).parts[0] != GENERATED
    ]
    paths.sort(key=lambda path: (path / CHECKPOINTS).stat().st_mtime, reverse=True)
    return [Experiment(path.relative_to(folders.output).as_posix(), path) for path in paths]


def find_experiment(folders: Folders, name: str) -> Experiment:
    """The experiment of a name; ConfigError where it is not in the list."""
    experiment = Experiment(name, folders.find_result(name))
    if not (experiment.folder / CHECKPOINTS).is_dir():
        raise ConfigError(f"{name[:80]}: no experiment; choose one from the list")
    return experiment


def find_adapter(folders: Folders, name: str) -> Path:
    """The best adapter of an experiment; ConfigError where it has none yet."""
    adapter = find_experiment(folders, name).adapter
    if adapter is None or not adapter.resolve().is_relative_to(folders.output):
        raise ConfigError(
            f"{name[:80]}: no adapter in it yet; choose another, or wait until its training has saved one"
        )
    return adapter


def merge_experiment(config: AppConfig, name: str, strength: str, dtype: str) -> tuple[Path, str]:
    """Merge an experiment's adapter into its base: the checkpoint, and whether ComfyUI takes it."""
    from mmaudio.commands import merge_adapter  # here, as torch and peft take seconds to import

    if dtype not in DTYPES:
        raise ConfigError(f"{dtype[:20]}: no kind of numbers; there are {', '.join(DTYPES)}")
    experiment, adapter = find_experiment(config.folders, name), find_adapter(config.folders, name)
    model, value = experiment.model(), parse_strength(strength)
    suffix = "" if value == AS_TRAINED else "_" + re.sub(r"[^\w.-]+", "-", str(value.plain()))
    output = experiment.folder / "merged" / f"{adapter_name(adapter)}{suffix}_{dtype}_{model}.safetensors"
    flags = [f"--strength={strength}", f"--dtype={dtype}", f"--output={output}", "--overwrite"]
    merge_adapter.main([str(adapter), *flags, *config.weight_flags])
    return output, merge_adapter.describe_comfyui(model, output)


def export_experiment(folders: Folders, name: str) -> Path:
    """The adapter as one .safetensors file to pass on, written where training has not done so."""
    from mmaudio.lora.checkpoint import read_adapter
    from mmaudio.lora.single_file import write_single_file

    adapter = find_adapter(folders, name)
    path = adapter.with_name(f"{adapter_name(adapter)}_lora.safetensors")
    if not path.is_file():
        write_single_file(path, read_adapter(adapter))
    return path


@functools.lru_cache(maxsize=256)
def _base_model(adapter: Path, changed: int) -> str:
    from mmaudio.lora.checkpoint import read_adapter

    try:
        return read_adapter(adapter).base_model
    except (MMAudioError, OSError) as error:
        return f"unreadable: {error}"


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None
