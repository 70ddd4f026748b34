"""The settings of a run of the generation command, and what its results depend on."""

from __future__ import annotations

import argparse
import functools
import hashlib
from pathlib import Path
from typing import Any

from mmaudio import cli
from mmaudio.generation.audio_mix import AudioMix
from mmaudio.generation.generation_table import GenerationTable
from mmaudio.generation.jobs import Job, describe_samples
from mmaudio.generation.solver import ADAPTIVE
from mmaudio.lora.checkpoint import check_base, read_adapter
from mmaudio.model.spec import model_spec
from mmaudio.weights.store import component_sha256, fetch_files, file_sha256

DEFAULT_MODEL = "small_16k"


def build_mix(args: argparse.Namespace) -> AudioMix:
    """What is done to the generated audio; ConfigError for invalid values."""
    return AudioMix(args.loudness, args.keep_original)


def open_table(args: argparse.Namespace) -> GenerationTable:
    """The table of what a folder's files are made from; files are hashed when it is asked."""

    @functools.cache
    def describe_run() -> dict[str, Any]:
        model = find_base(args)
        fetch_files(model, ("network",), args.weights, cli.is_offline(args.offline))
        hashes = {"base": component_sha256(model, "network", args.weights)}
        return describe_settings(args, model) | hashes | {"adapter_sha256": hash_file(args.adapter)}

    def describe(job: Job) -> list[dict[str, Any]]:
        return describe_samples(job, describe_run() | {"video_sha256": hash_file(job.request.video)})

    return GenerationTable(args.output, describe)


def hash_file(path: Path | None) -> str | None:
    """A hash of a file's content, of that of all files in a folder; None for none."""
    if path is None:
        return None
    members = sorted(path.iterdir()) if path.is_dir() else [path]
    return hashlib.sha256("".join(map(file_sha256, filter(Path.is_file, members))).encode()).hexdigest()[:16]


def find_base(args: argparse.Namespace) -> str:
    """The base model's name; WeightsError for an adapter of another one."""
    adapter_file = None if args.adapter is None else read_adapter(args.adapter)
    model: str = args.model or (adapter_file.base_model if adapter_file is not None else "") or DEFAULT_MODEL
    if adapter_file is not None:
        check_base(adapter_file, model)
    return model


def describe_settings(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """The settings that are stored in the audio files; an adapter of no strength is none."""
    spec, strength = model_spec(model), 1.0 if args.strength is None else args.strength
    settings = {
        "model": model,
        "steps": (spec.num_steps if args.method != ADAPTIVE else None) if args.steps is None else args.steps,
        "guidance": spec.guidance_scale if args.guidance is None else args.guidance,
        "loudness": args.loudness,
        "keep_original": args.keep_original,
    }
    return settings | ({"adapter": args.adapter.name, "strength": strength} if args.adapter and strength > 0 else {})
