"""Command lines that repeat an evaluation, its features and its training, and that use the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmaudio.config import TrainConfig
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.strength_sweep import FULL
from mmaudio.finetune.run_inputs import VALUES_BEFORE
from mmaudio.lora.checkpoint import AdapterFile
from mmaudio.lora.strength import AS_TRAINED
from mmaudio.model.spec import ModelSpec
from mmaudio.utils.checkout import command_words
from mmaudio.utils.hydra_quote import quote_value
from mmaudio.utils.terminal import join_command
from mmaudio.utils.trackers import DEFAULT_TRACKERS, PROJECT


def build_commands(
    config: EvaluationConfig,
    spec: ModelSpec,
    adapter: AdapterFile,
    strength: float | None = None,
    experiment: Path | None = None,
) -> list[tuple[str, str]]:
    """Titles and command lines; that of training only where the adapter's file has its settings.

    `strength` is the recommended one, with which audio is generated; `experiment` is evaluated in place of the adapter.
    """
    evaluated = config if experiment is None else replace(config, checkpoint=experiment)
    commands = {
        "Make this report again": _evaluation_command(evaluated),
        "Extract the features again": _extraction_command(config, spec),
        "Train again": _training_command(config, spec, adapter) if adapter.config and not config.other_adapters else [],
        "Make a sound for a video with the adapter": _generation_command(config, spec, strength),
    }
    return [(title, join_command(arguments)) for title, arguments in commands.items() if arguments]


def _evaluation_command(config: EvaluationConfig) -> list[str]:
    sampling = config.sampling
    flags = {
        "--clips": config.clips_tsv,
        "--features": config.features_dir,
        "--output": config.output_dir,
        "--strengths": ",".join(map(str, config.strengths or ())),
        "--samples": sampling.samples,
        "--seed": sampling.seed,
        "--batch_size": sampling.batch_size,
        "--steps": sampling.num_steps,
        "--guidance": sampling.guidance_scale,
        "--max_clips": config.max_clips,
        "--metrics": None if config.metrics is None else ",".join(config.metrics),
        "--model": config.model,
        "--general_videos": config.general_videos,
        "--weights": config.weights,
        "--trackers": None if config.trackers == DEFAULT_TRACKERS else ",".join(config.trackers),
        "--project": None if config.project == PROJECT else config.project,
    }
    return [
        *command_words("evaluate"),
        *_adapter_flags(config, "--lora_checkpoint"),
        *_format_flags({"--test_videos": config.video_root}),
        "--compare_original",
        *_format_flags(flags),
        *(["--include-training"] if config.include_training else []),
        *(["--check-data"] if config.check_data else []),
    ]


def _extraction_command(config: EvaluationConfig, spec: ModelSpec) -> list[str]:
    flags = {
        "--input_tsv": config.clips_tsv,
        "--video_root": config.video_root,
        "--output_dir": config.features_dir,
        "--model": spec.name,
        "--weights": config.weights,
    }
    return [*command_words("extract"), *_format_flags(flags)]


def _generation_command(config: EvaluationConfig, spec: ModelSpec, recommended: float | None) -> list[str]:
    request = {"--video": "VIDEO.mp4", "--prompt": "what is heard", "--model": spec.name}
    files = {
        "--strength": None if recommended in (None, FULL) else f"{recommended:g}",
        "--output": "sound",
        "--weights": config.weights,
    }
    adapters = _adapter_flags(config, "--adapter")
    return [*command_words("generate"), *_format_flags(request), *adapters, *_format_flags(files)]


def _adapter_flags(config: EvaluationConfig, flag: str) -> list[str]:
    """The adapters, and their strengths where one is not as trained."""
    with_strength = any(strength != AS_TRAINED for _, strength in config.adapters)
    flags = [{flag: path, "--strength": str(s.plain()) if with_strength else None} for path, s in config.adapters]
    return [text for pair in flags for text in _format_flags(pair)]


def _training_command(config: EvaluationConfig, spec: ModelSpec, adapter: AdapterFile) -> list[str]:
    """The command that trains such an adapter: every setting that is not the default's."""
    paths = {
        "exp_id": "again",
        "model": spec.name,
        "clips_tsv": config.clips_tsv,
        "features_dir": config.features_dir,
    }
    settings = {name: value for name, value in (VALUES_BEFORE | adapter.config).items() if name not in paths}
    overrides = {name: quote_value(value) for name, value in paths.items()}
    overrides |= _differing_settings(settings, TrainConfig().to_dict())
    return [*command_words("train"), *(f"{name}={value}" for name, value in overrides.items())]


def _format_flags(flags: Mapping[str, object]) -> list[str]:
    """Flags and values as arguments; flags without a value are left out."""
    return [text for flag, value in flags.items() if value is not None for text in (flag, str(value))]


def _differing_settings(config: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Overrides, by dotted name, for the settings in `config` that differ from the defaults, group by group."""
    overrides: dict[str, str] = {}
    for name, value in config.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and default:
            overrides |= _differing_settings(value, default, f"{prefix}{name}.")
        elif name in defaults and value != default:
            overrides[f"{prefix}{name}"] = _format_override(value)
    return overrides


def _format_override(value: object, nested: bool = False) -> str:
    """A value in Hydra's grammar; texts within lists are always quoted, keys never."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_format_override(item, True)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_format_override(item, True) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = quote_value(value)
    return f"'{text}'" if nested and isinstance(value, str) and text == value else text
