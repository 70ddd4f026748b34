"""Model card of an adapter on the hub: what it was trained on, the evaluation's verdict, and how to use it.

card = render_card("anna/dogs", adapter, evaluation, samples)    # README.md, with the hub's front matter

Every number is that of `metrics.json`; no name of a video is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmaudio.lora.checkpoint import AdapterFile
from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.statistics import Comparison
from mmaudio.model.spec import model_spec
from mmaudio.report.number_format import format_number, format_signed, plural
from mmaudio.report.summary import Summary, read_summary
from mmaudio.report.verdict import VALIDATION_CLIPS
from mmaudio.utils.hub_errors import hub_address
from mmaudio.utils.templates import load_templates
from mmaudio.weights.registry import BASE_REPOSITORY

NEEDED_RATE = 44_100
"""The sample rate of the models that ComfyUI loads."""
DEFAULT_STRENGTH = 1.0


@dataclass(frozen=True)
class CardEvaluation:
    """What an evaluation says of the adapter."""

    summary: Summary
    clips: int
    videos: int
    trained_clips: int
    """Those of videos that were trained on, which only `--include-training` compares."""
    validation_is_test: bool
    """Whether the compared clips also chose the best step."""


def read_evaluation(path: Path, adapter_sha256: str, validation_is_test: bool) -> CardEvaluation | None:
    """The evaluation in `metrics.json`; None where there is none, or one of another adapter or strength."""
    summary = read_summary(path)
    if summary is None:
        return None
    metrics = json.loads(path.read_text())
    adapters = metrics.get("adapters", [])
    if metrics.get("adapter_sha256", [adapter_sha256]) != [adapter_sha256] or len(adapters) != 1:
        return None
    if adapters[0]["strength"] != DEFAULT_STRENGTH:
        return None
    return CardEvaluation(
        summary, metrics["clips"], metrics["videos"], metrics.get("trained_clips", 0), validation_is_test
    )


def render_card(
    repository: str,
    adapter: AdapterFile,
    evaluation: CardEvaluation | None,
    samples: Sequence[tuple[str, str]] = (),
) -> str:
    """The card as Markdown; `samples` are the files of base and adapted model in the repository."""
    spec, name = model_spec(adapter.base_model), repository.split("/")[1]
    summary = None if evaluation is None else evaluation.summary
    flags = [] if summary is None else summary.strength_flags
    strength = flags[1] if flags else f"{DEFAULT_STRENGTH:g}"
    place = f"{hub_address(repository)}/resolve/main"
    context = {
        "licence": spec.licence,
        "base_repository": "" if spec.bundled else BASE_REPOSITORY,
        "model": spec.name,
        "title": name,
        "method": adapter.lora.method_name,
        "rank": adapter.lora.rank,
        "training": _describe_training(adapter),
        "summary": summary,
        "samples": [(f"{place}/{base}", f"{place}/{adapted}") for base, adapted in samples],
        "tag": "video" if any(base.endswith(".mp4") for base, _ in samples) else "audio",
        "repository": repository,
        "file": f"{name}.safetensors",
        "flags": "".join(f" {flag}" for flag in flags),
        "strength": strength,
        "comfyui": spec.codec.sample_rate == NEEDED_RATE,
        "comfyui_strength": f", at strength {strength}" if flags else "",
        **({} if evaluation is None else _describe_evaluation(evaluation)),
    }
    card = load_templates("mmaudio.report").get_template("model_card.md.j2").render(context)
    return card.replace("&#39;", "'").strip() + "\n"  # it is read as it is, too


def _describe_evaluation(evaluation: CardEvaluation) -> dict[str, Any]:
    """The template's variables of an evaluation."""
    caveats = [VALIDATION_CLIPS] * evaluation.validation_is_test
    if evaluation.trained_clips:
        caveats.append(
            f"{evaluation.trained_clips} of them are of videos that the adapter was trained on: the numbers are not "
            "about unseen videos."
        )
    names = [name for name in evaluation.summary.comparisons if METRICS[name].in_verdict]
    return {
        "lines": evaluation.summary.lines(),
        "compared": f"{plural(evaluation.clips, 'clip')} of {plural(evaluation.videos, 'held-out video')}",
        "caveats": caveats,
        "rows": [_metric_row(name, evaluation.summary.comparisons[name]) for name in names],
    }


def _metric_row(name: str, comparison: Comparison) -> list[str]:
    ends = [format_signed(end) for end in comparison.interval or ()]
    values = [format_number(comparison.base), format_number(comparison.adapted), format_signed(comparison.difference)]
    return [METRICS[name].title, *values, " to ".join(ends) or "–", comparison.verdict, comparison.better]


def _describe_training(adapter: AdapterFile) -> list[str]:
    """Counts of clips and videos, of this training and of those before it."""
    if not adapter.data:
        return ["Its file does not say."]
    seconds = adapter.data.get("seconds")
    clip_length = f" of {seconds:g} s" if seconds else ""
    sentences = [f"{_count(adapter.data.get('train', {}), clip_length)}, {plural(adapter.step, 'step')}."]
    validation = adapter.data.get("validation", {})
    if validation.get("clips"):
        sentences.append(f"The best step was chosen by {_count(validation)}.")
    for ancestor in adapter.lineage:
        sentences.append(f"Before that, an adapter that it was trained on from: {_count(ancestor.get('train', {}))}.")
    return sentences


def _count(split: Mapping[str, Any], clip_length: str = "") -> str:
    clips, videos = split.get("clips", 0), len(split.get("videos", []))
    return f"{plural(clips, 'clip')}{clip_length} from {plural(videos, 'video')}"
