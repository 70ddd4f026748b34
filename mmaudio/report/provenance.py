"""What a report tells besides results: the data, the settings, the versions, how to do it again."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mmaudio.config import TrainConfig
from mmaudio.data.clips import left_out_path, read_clips, read_left_out
from mmaudio.data.feature_store import left_out
from mmaudio.evaluation.config import Request
from mmaudio.evaluation.general_domain import General
from mmaudio.lora.checkpoint import AdapterFile
from mmaudio.model.spec import ModelSpec
from mmaudio.report.render import Background
from mmaudio.report.sections import read_history
from mmaudio.utils.hydra_quote import quoted

PACKAGES = ("mmaudio-lora", "torch", "torchaudio", "peft", "open_clip_torch", "av", "numpy", "scipy")
SHOWN = 8
"""Targets of an adapter that are listed by name."""


def about(
    request: Request,
    adapter: AdapterFile,
    spec: ModelSpec,
    general: General | None,
    why_none: str,
    times: Mapping[str, float],
) -> Background:
    """Everything about the adapter, its training and its data that stands in its files; `times` in seconds."""
    experiment = request.checkpoint.parent.parent
    unused = read_left_out(left_out_path(request.clips)) + left_out(request.clips, request.features)
    return Background(
        model=spec.name,
        licence=spec.licence,
        history=read_history(experiment / "metrics.jsonl"),
        step=adapter.step if adapter.data else None,  # a foreign file says nothing
        clips=read_clips(request.clips),
        left_out=unused,
        settings=[
            ("This evaluation", _evaluation(request, spec)),
            ("The adapter", _adapter(request.checkpoint, adapter)),
            ("Its training", flat(adapter.config)),
            ("Versions", versions()),
            ("Times", {what: f"{seconds:.0f} s" for what, seconds in times.items()}),
        ],
        commands=commands(request, spec, adapter),
        no_forgetting=why_none,
        general="" if general is None else general.what,
    )


def _evaluation(request: Request, spec: ModelSpec) -> dict[str, object]:
    draws = request.draws
    return {
        "seed": draws.seed,
        "sounds per clip": draws.samples,
        "solver steps": spec.steps if draws.steps is None else draws.steps,
        "guidance": spec.guidance if draws.guidance is None else draws.guidance,
        "device": f"{request.device}, {str(request.dtype).removeprefix('torch.')}",
        "strengths tried": ", ".join(f"{strength:g}" for strength in request.strengths) or "none but 0 and 1",
        "clips": "all held out" if request.max_clips is None else f"at most {request.max_clips}",
        "table of clips": request.clips,
        "features": request.features,
    }


def _adapter(path: Path, adapter: AdapterFile) -> dict[str, object]:
    targets, seen = adapter.targets, adapter.data.get("train")
    more = f" and {len(targets) - SHOWN} more" if len(targets) > SHOWN else ""
    return {
        "file": path,
        "base model": adapter.base_model,
        "base's SHA-256": adapter.base_sha256,
        "step": adapter.step,
        "rank": adapter.lora.rank,
        "alpha": adapter.lora.alpha,
        "dropout": adapter.lora.dropout,
        "adapted layers": ", ".join(targets[:SHOWN]) + more,
        "trained on": f"{seen['clips']} clips of {len(seen['videos'])} videos" if seen else "not said in the file",
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested settings as one level of dotted names."""
    found: dict[str, object] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def versions() -> dict[str, object]:
    """Python's and the main packages' versions, and the machine's kind."""
    found: dict[str, object] = {"python": platform.python_version(), "machine": platform.platform(terse=True)}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def commands(request: Request, spec: ModelSpec, adapter: AdapterFile) -> list[tuple[str, str]]:
    """What can be run again, titles and command lines: this report, the features, the training, and the use."""
    draws = request.draws
    weights = [] if request.weights is None else ["--weights", str(request.weights)]
    again = [
        "python",
        "evaluate_lora.py",
        "--lora_checkpoint",
        str(request.checkpoint),
        "--test_videos",
        str(request.videos),
        "--compare_original",
        "--clips",
        str(request.clips),
        "--features",
        str(request.features),
        "--output",
        str(request.output),
        "--strengths",
        ",".join(map(str, request.strengths)),
        "--samples",
        str(draws.samples),
        "--seed",
        str(draws.seed),
        "--batch_size",
        str(draws.batch),
    ]
    optional = {
        "--steps": draws.steps,
        "--guidance": draws.guidance,
        "--max_clips": request.max_clips,
        "--metrics": None if request.metrics is None else ",".join(request.metrics),
        "--model": request.model,
        "--general_videos": request.general_videos,
    }
    for flag, value in optional.items():
        again += [] if value is None else [flag, str(value)]
    again += weights
    again += ["--include-training"] if request.include_training else []
    again += ["--check-data"] if request.check_data else []
    use = [
        "python",
        "-m",
        "mmaudio.generation",
        "--video",
        "VIDEO.mp4",
        "--prompt",
        "what is heard",
        "--model",
        spec.name,
        "--adapter",
        str(request.checkpoint),
        "--output",
        "sound",
        *weights,
    ]
    extract = [
        "python",
        "training/extract_features_finetuning.py",
        "--input_tsv",
        str(request.clips),
        "--video_root",
        str(request.videos),
        "--output_dir",
        str(request.features),
        "--model",
        spec.name,
        *weights,
    ]
    return [
        ("Make this report again", shlex.join(again)),
        ("Extract the features again", shlex.join(extract)),
        *([("Train again", shlex.join(_training(request, spec, adapter)))] if adapter.config else []),
        ("Make a sound for a video with the adapter", shlex.join(use)),
    ]


def _training(request: Request, spec: ModelSpec, adapter: AdapterFile) -> list[str]:
    """The command that trains such an adapter: every setting that is not the default's."""
    places = {"exp_id": "again", "model": spec.name, "clips_tsv": request.clips, "features_dir": request.features}
    stated = {name: quoted(value) for name, value in places.items()}
    given = {name: value for name, value in adapter.config.items() if name not in places}
    own = _differing(given, TrainConfig().plain())
    return ["python", "train_lora.py", *(f"{name}={value}" for name, value in {**stated, **own}.items())]


def _differing(config: Mapping[str, Any], usual: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Overrides, by dotted name, for the settings in `config` that `usual` has otherwise; groups are gone into."""
    found: dict[str, str] = {}
    for name, value in config.items():
        default = usual.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and default:
            found |= _differing(value, default, f"{prefix}{name}.")
        elif name in usual and value != default:
            found[f"{prefix}{name}"] = _override(value)
    return found


def _override(value: object, inside: bool = False) -> str:
    """A value in Hydra's grammar; texts within lists are always quoted, keys never."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_override(own, True)}" for key, own in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_override(own, True) for own in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = quoted(value)
    return f"'{text}'" if inside and isinstance(value, str) and text == value else text
