"""Base against adapted model on clips that training never saw: the whole evaluation, from the adapter to the report.

    report = evaluate(Request(checkpoint, videos, clips_tsv, features, output))

Each model in turn gives its losses and its latents (a few kilobytes a clip); then the sounds are decoded, measured and
written clip by clip, so that memory does not grow with the number of clips.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mmaudio import weights
from mmaudio.adapters import WEIGHTS_NAME, AdapterFile, attach, check_base, read_adapter
from mmaudio.data.features import FeatureSet, load_features, read_header, shard_path
from mmaudio.errors import DataError
from mmaudio.evaluation import wording
from mmaudio.evaluation.background import about
from mmaudio.evaluation.decoding import MODELS, Material, decode
from mmaudio.evaluation.general import General, general_set, spread
from mmaudio.evaluation.measure import Draws, sample_latents, velocity_losses
from mmaudio.evaluation.report import write_report
from mmaudio.evaluation.request import Request
from mmaudio.evaluation.results import ADAPTED, summary, write_json, write_tsv
from mmaudio.generation.sampler import Sampler, load_sampler
from mmaudio.model.lora import merge
from mmaudio.model.spec import ModelSpec, model_spec
from mmaudio.released import PARTS

VERSION = 3
"""Raised whenever the same inputs give other results."""


def evaluate(request: Request) -> Path:
    """Compare and write everything, or nothing where what stands there is still valid; the report's path.

    Raises DataError for clips that are missing or were trained on, WeightsError for an adapter that does not fit.
    """
    adapter = read_adapter(request.checkpoint)
    spec = model_spec(adapter.base_model)
    parts = PARTS if request.general_videos is not None else ("network", "vae", "vocoder")
    weights.fetch(spec.name, parts, request.weights, request.offline)
    base_sha256 = weights.identity(spec.name, "network", request.weights)
    check_base(adapter, spec.name, base_sha256)
    held_out = load_features(request.clips, request.features, "test", spec.name)
    refuse_trained(held_out, adapter)
    refuse_absent(request.videos, held_out)
    held_out = held_out.subset(spread(held_out.videos, request.max_clips))
    general, why_none = general_set(
        spec, request.general_videos, request.output / "general", request.weights, request.device
    )
    key = inputs_key(request, spec, held_out, general)
    report = request.output / "report" / "index.html"
    if is_valid(request.output / "metrics.json", key) and report.is_file():
        print(f"evaluation: {report} is still valid, nothing to do")
        return report

    sets = {"held-out": Material(request.videos, held_out)}
    if general is not None:
        sets["general"] = Material(general.root, general.features)
    sampler = load_sampler(spec.name, request.weights, request.device, dtype=request.dtype)
    kept = request.output / ".evaluation"
    run_models(sampler, adapter, base_sha256, sets, request.draws, kept / key[:16])
    results = {
        name: decode(sampler, part, report.parent if name == "held-out" else None) for name, part in sets.items()
    }
    background = about(request, adapter, spec, general, why_none)
    write_report(report, results["held-out"], results.get("general"), background)
    write_tsv(request.output / "metrics.tsv", results)
    shutil.rmtree(kept)
    extra = {"inputs": key, "model": spec.name, "adapter": str(request.checkpoint), "draws": asdict(request.draws)}
    write_json(request.output / "metrics.json", summary(results["held-out"], results.get("general"), extra))
    for line in wording.terminal(results["held-out"].comparisons()):
        print(line)
    return report


def refuse_absent(root: Path, features: FeatureSet) -> None:
    """DataError where the folder does not hold the clips' videos."""
    absent = [video for video in dict.fromkeys(features.videos) if not (root / video).is_file()]
    if absent:
        raise DataError(
            f"{root}: {len(absent)} held-out videos are not there ({', '.join(absent[:3])}); give the folder that the "
            "table of clips was made from (--test_videos)"
        )


def refuse_trained(features: FeatureSet, adapter: AdapterFile) -> None:
    """DataError where a held-out clip is one that the adapter was trained on."""
    seen = sorted(set(features.ids) & set(adapter.data.get("train", {}).get("ids", [])))
    if seen:
        raise DataError(
            f"{len(seen)} held-out clips were trained on ({', '.join(seen[:3])} ...): comparing on them says nothing. "
            "Give the table of clips that the adapter was trained with (--clips)"
        )


def run_models(
    sampler: Sampler, adapter: AdapterFile, base_sha256: str, sets: dict[str, Material], draws: Draws, kept: Path
) -> None:
    """Losses and latents of the base, then of the adapted model, whose adapter is merged into the same network.

    What is done is kept in the folder `kept`, and read from there by a run that goes on.
    """
    for model in MODELS:
        if model == ADAPTED:
            adapted = attach(sampler.network, adapter, sampler.spec.name, base_sha256)
            sampler.network = merge(adapted).eval().requires_grad_(False)
        for name, material in sets.items():
            file = kept / f"{model}-{name}.safetensors"
            if not file.is_file():
                sampler.network.set_duration(material.features.seconds)
                what = f"{model} model, {name} clips"
                losses = velocity_losses(sampler, material.features, draws, f"{what}: loss")
                latents = sample_latents(sampler, material.features, draws, f"{what}: sounds")
                kept.mkdir(parents=True, exist_ok=True)
                part = file.with_suffix(".part")
                save_file({"losses": torch.tensor(losses), "latents": latents.contiguous()}, part)
                part.replace(file)
            done = load_file(file)
            material.losses[model], material.latents[model] = done["losses"].tolist(), done["latents"]


def is_valid(path: Path, key: str) -> bool:
    """Whether the results at `path` are those of the same inputs."""
    try:
        return bool(json.loads(path.read_text())["inputs"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def inputs_key(request: Request, spec: ModelSpec, held_out: FeatureSet, general: General | None) -> str:
    """A hash of everything that the results depend on."""
    known: dict[str, object] = {
        "version": VERSION,
        "adapter": adapter_hash(request.checkpoint),
        "base": {part: weights.identity(spec.name, part, request.weights) for part in ("network", "vae", "vocoder")},
        "draws": asdict(request.draws),
        "device": [request.device.type, str(request.dtype)],
        "clips": [asdict(clip) for clip in held_out.clips],
        "features": _keys(request.features, held_out.videos),
        "general": None if general is None else _keys(general.folder, general.features.videos),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def adapter_hash(path: Path) -> str:
    """SHA-256 of an adapter's weights file, in hexadecimal; of a PEFT folder's, where `path` is one."""
    return weights.file_hash(path / WEIGHTS_NAME if path.is_dir() else path)


def _keys(folder: Path, videos: Sequence[str]) -> list[str]:
    headers = [read_header(shard_path(folder, video)) for video in dict.fromkeys(videos)]
    return [f"{header.picture_key} {header.text_key}" for header in headers if header is not None]
