"""The settings of a run of the generation command, and what its results depend on."""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmaudio import cli
from mmaudio.generation.generation_flags import DEFAULT_MODEL
from mmaudio.generation.generation_table import GenerationTable
from mmaudio.generation.jobs import Job, describe_job
from mmaudio.generation.solver import ADAPTIVE
from mmaudio.lora.hub_adapter import find_adapter
from mmaudio.lora.stack import AdapterStack, pair_strengths, read_stack
from mmaudio.model.spec import model_spec
from mmaudio.weights.store import component_sha256, fetch_files, file_sha256


def choose_base(args: argparse.Namespace) -> tuple[AdapterStack | None, str]:
    """The adapters, read and checked, and the name of the base model."""
    pairs = pair_strengths(args.adapter, args.strength)
    stack = read_stack(pairs, cli.is_offline(args.offline)) if pairs else None
    model = args.model or (stack.base_model if stack is not None else "") or DEFAULT_MODEL
    if stack is not None:
        stack.check(model)
    return stack, model


def describe_settings(args: argparse.Namespace, stack: AdapterStack | None, model: str) -> dict[str, Any]:
    """The settings that are stored in the audio files; adapters of no strength are none."""
    spec = model_spec(model)
    settings: dict[str, Any] = {
        "model": model,
        "steps": (spec.num_steps if args.method != ADAPTIVE else None) if args.steps is None else args.steps,
        "guidance": spec.guidance_scale if args.guidance is None else args.guidance,
        "loudness": args.loudness,
        "keep_original": args.keep_original,
    }
    if stack is None or not has_effect(stack):
        return settings
    adapters = stack.to_json()
    return settings | (adapters[0] if len(adapters) == 1 else {"adapters": adapters})


def has_effect(stack: AdapterStack) -> bool:
    """Whether any adapter has a strength."""
    return not all(adapter.strength.is_zero for adapter in stack.adapters)


def open_table(args: argparse.Namespace) -> GenerationTable:
    """The table of what a folder's files are made from; files are hashed when it is asked."""

    @functools.cache
    def describe_run() -> dict[str, Any]:
        """What is the same for every file of the run."""
        stack, model = choose_base(args)
        fetch_files(model, ("network",), args.weights, cli.is_offline(args.offline))
        hashes = {
            "base": component_sha256(model, "network", args.weights),
            "adapter_files": hash_files(map(find_adapter, args.adapter)),
        }
        ranking = {"rank_by": args.rank_by, "samples": args.samples if args.rank_by else None}
        return describe_settings(args, stack, model) | ranking | hashes

    def describe(job: Job) -> dict[str, Any]:
        """What one file is made from."""
        videos = [] if job.request.video is None else [job.request.video]
        return describe_job(job, describe_run()) | {"video_file": hash_files(videos), "first_seed": job.request.seed}

    return GenerationTable(args.output, describe)


def hash_files(paths: Iterable[Path]) -> list[str]:
    """A hash of the content of each file, or of that of all files in a folder."""
    hashes = []
    for path in paths:
        members = sorted(filter(Path.is_file, path.iterdir())) if path.is_dir() else [path]
        hashes.append(hashlib.sha256("".join(map(file_sha256, members)).encode()).hexdigest()[:16])
    return sorted(hashes)
