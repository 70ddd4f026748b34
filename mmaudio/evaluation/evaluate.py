"""Base against adapted model on clips that training never saw: the whole evaluation, from the adapter to the report.

    report = evaluate(Request(checkpoint, videos, clips_tsv, features, output))

Each model in turn gives its losses and its latents (a few kilobytes a clip); then the sounds are decoded, measured and
written clip by clip, so that memory does not grow with the number of clips.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from mmaudio.data.clips import read_clips
from mmaudio.data.feature_store import FeatureSet, load_features, read_header, shard_path
from mmaudio.data.scan import fingerprint
from mmaudio.errors import DataError, WeightsError
from mmaudio.evaluation import uncomputed_metrics as gaps
from mmaudio.evaluation.config import Request
from mmaudio.evaluation.general_domain import General, general_set, spread
from mmaudio.evaluation.measurement import MEDIA, Material, decode
from mmaudio.evaluation.model_runs import run_models
from mmaudio.evaluation.results import summary, write_json, write_tsv
from mmaudio.evaluation.strength_sweep import compare_strengths
from mmaudio.evaluation.sync_check import asked_check
from mmaudio.evaluation.tensorboard import write_scalars
from mmaudio.generation.sampler import load_sampler
from mmaudio.lora.checkpoint import AdapterFile, check_base, files_of, read_adapter
from mmaudio.lora.peft_compat import shapes_of
from mmaudio.metrics.pretrained_search import find_judges
from mmaudio.metrics.registry import chosen_metrics
from mmaudio.metrics.search import Search
from mmaudio.model.spec import ModelSpec, model_spec
from mmaudio.report import verdict as wording
from mmaudio.report.provenance import about
from mmaudio.report.render import write_report
from mmaudio.weights import store as weights
from mmaudio.weights.registry import PARTS

VERSION = 8
"""Raised whenever the same inputs give other results."""


def evaluate(request: Request) -> Path:
    """Compare and write everything, or nothing where what stands there is still valid; the report's path.

    Raises DataError for clips that are missing or were trained on, WeightsError for an adapter that does not fit.
    """
    start = time.monotonic()
    names = chosen_metrics(request.metrics)
    adapter = read_adapter(request.checkpoint)
    spec = model_spec(base_model(request, adapter))
    check_base(adapter, spec.name)
    parts = PARTS if request.general_videos is not None else ("network", "vae", "vocoder")
    weights.fetch(spec.name, parts, request.weights, request.offline)
    base_sha256 = weights.identity(spec.name, "network", request.weights)
    check_base(adapter, spec.name, base_sha256)
    search = Search(spec.name, request.weights, request.offline, request.metrics or (), request.device)
    judges = find_judges(search, names)
    held_out = load_features(request.clips, request.features, "test", spec.name)
    trained = trained_on(held_out, adapter, request)
    refuse_absent(request.videos, held_out)
    held_out = held_out.subset(spread(held_out.videos, request.max_clips))
    check = asked_check(request, search)
    general, why_none = general_set(
        spec, request.general_videos, request.output / "general", request.weights, request.device
    )
    more = {"metrics": names, "judges": judges.identity, "check": None if check is None else check.identity}
    key = inputs_key(request, spec, held_out, general, more)
    report = request.output / "report" / "index.html"
    if is_valid(request.output / "metrics.json", key) and report.is_file():
        print(f"evaluation: {report} is still valid, nothing to do")
        return report

    checked = None if check is None else check.run()
    sets = {"held-out": Material(request.videos, held_out, trained=trained)}
    if general is not None:
        sets["general"] = Material(general.root, general.features)
    sampler = load_sampler(spec.name, request.weights, request.device, dtype=request.dtype)
    kept = request.output / ".evaluation"
    run_models(sampler, adapter, base_sha256, sets, request, kept / key[:16])
    sampled = time.monotonic()
    wanted = judges.load(names)
    remove_earlier(request.output, report.parent)
    results = {
        name: decode(sampler, part, report.parent if name == "held-out" else None, wanted)
        for name, part in sets.items()
    }
    compare_strengths(results["held-out"])
    times = {"losses and latents": sampled - start, "decoding and measuring": time.monotonic() - sampled}
    background = replace(about(request, adapter, spec, general, why_none, times), data_check=checked)
    write_report(report, results["held-out"], results.get("general"), background)
    write_tsv(request.output / "metrics.tsv", results)
    shutil.rmtree(kept)
    extra = {
        "inputs": key,
        "model": spec.name,
        "adapter": str(request.checkpoint),
        "draws": asdict(request.draws),
        "data_check": None if checked is None else checked.plain(),
    }
    write_scalars(request.output / "evaluation", results, adapter.step)
    write_json(request.output / "metrics.json", summary(results["held-out"], results.get("general"), extra))
    said = wording.terminal(results["held-out"].comparisons()) + gaps.terminal(results["held-out"].not_computed)
    for line in said:
        print(line)
    return report


def remove_earlier(output: Path, report: Path) -> None:
    """Remove what an earlier evaluation calls valid, and its sounds: those of two must not stand in one report."""
    (output / "metrics.json").unlink(missing_ok=True)
    shutil.rmtree(report / MEDIA, ignore_errors=True)


def refuse_absent(root: Path, features: FeatureSet) -> None:
    """DataError where the folder does not hold the clips' videos."""
    absent = [video for video in dict.fromkeys(features.videos) if not (root / video).is_file()]
    if absent:
        raise DataError(
            f"{root}: {len(absent)} held-out videos are not there ({', '.join(absent[:3])}); give the folder that the "
            "table of clips was made from (--test_videos)"
        )


def base_model(request: Request, adapter: AdapterFile) -> str:
    """The base model's name; WeightsError where neither the adapter nor the request names it."""
    named = request.model or adapter.base_model
    if not named:
        raise WeightsError(
            f"{request.checkpoint}: it names no base model, and {shapes_of(adapter.likely)}: say which (--model)"
        )
    return named


def trained_on(features: FeatureSet, adapter: AdapterFile, request: Request) -> frozenset[str]:
    """Ids of the clips whose source videos the adapter was trained on.

    DataError where there are any and the request does not include them. With one or two videos the table of clips
    itself divides a video by time: such clips are known, but not refused.
    """
    seen = adapter.data.get("train", {})
    ids, videos = set(seen.get("ids", [])), set(seen.get("videos", []))
    known = [clip for clip in features.clips if clip.id in ids or clip.video in videos]
    by_time = {clip.video for clip in read_clips(request.clips) if clip.split == "train"}
    wrong = [clip.id for clip in known if clip.id in ids or clip.video not in by_time]
    if wrong and not request.include_training:
        raise DataError(
            f"{len(wrong)} held-out clips are of videos that were trained on ({', '.join(sorted(wrong)[:3])} ...): "
            "comparing on them says nothing. Give the table of clips that the adapter was trained with (--clips), or "
            "take them in, marked (--include-training)"
        )
    return frozenset(clip.id for clip in known)


def is_valid(path: Path, key: str) -> bool:
    """Whether the results at `path` are those of the same inputs."""
    try:
        return bool(json.loads(path.read_text())["inputs"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def inputs_key(
    request: Request, spec: ModelSpec, held_out: FeatureSet, general: General | None, more: Mapping[str, object]
) -> str:
    """A hash of everything that the results depend on."""
    known: dict[str, object] = {
        **more,
        "version": VERSION,
        "adapter": [weights.file_hash(file) for file in files_of(request.checkpoint)],
        "base": {part: weights.identity(spec.name, part, request.weights) for part in ("network", "vae", "vocoder")},
        "draws": asdict(request.draws),
        "strengths": request.strengths,
        "device": [request.device.type, str(request.dtype)],
        "clips": [asdict(clip) for clip in held_out.clips],
        "features": _keys(request.features, request.videos, held_out.videos),
        "general": None if general is None else _keys(general.folder, general.root, general.features.videos),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _keys(folder: Path, root: Path, videos: Sequence[str]) -> list[str]:
    """Of the features, and of the videos themselves: their own sounds are what models are compared with."""
    headers = [(video, read_header(shard_path(folder, video))) for video in dict.fromkeys(videos)]
    keys = [(video, header.picture_key, header.text_key) for video, header in headers if header is not None]
    return [f"{picture} {text} {fingerprint(root / video)}" for video, picture, text in keys]
