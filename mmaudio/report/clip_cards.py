"""Clips of a report: their cards, the most improved and the most worsened ones, the data of the page's script."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmaudio.evaluation.report_clips import NUM_EXTREMES, relative_improvement
from mmaudio.evaluation.results import ClipResult, Results
from mmaudio.metrics.metric_inputs import ADAPTED, BASE, CODEC, ORIGINAL
from mmaudio.metrics.registry import METRICS, PRIMARY, Metric
from mmaudio.metrics.statistics import BETTER, UNSURE, WORSE
from mmaudio.report.charts import onset_strip
from mmaudio.report.metric_table import STYLES
from mmaudio.report.number_format import THIN_SPACE, format_number, format_signed, format_sortable

TITLES = {ORIGINAL: "Original", BASE: "Base", ADAPTED: "Adapted", CODEC: "Codec"}
"""Titles of the sounds, in the order of their keys: 1, 2, 3, and 4 where there is the codec's round trip."""
MIN_CHANGE = 0.005
"""Relative change below which a clip counts as neither better nor worse."""
FREQUENCIES = (250, 1000, 4000, 16_000)
"""Hertz that are marked beside a spectrogram."""


def available_sounds(results: Results) -> list[dict[str, str]]:
    """Names and titles of the sounds that the clips have, in the order of `TITLES`."""
    names = [name for name in TITLES if any(name in result.media.files for result in results.clips)]
    return [{"name": name, "title": TITLES[name]} for name in names]


def clip_cards(results: Results) -> list[dict[str, Any]]:
    """The card of each clip that is played."""
    return [_clip_card(number, result) for number, result in enumerate(results.clips, 1) if result.media.files]


def _clip_card(number: int, result: ClipResult) -> dict[str, Any]:
    clip, media = result.clip, result.media
    base, adapted = (result.value(model, PRIMARY) for model in (BASE, ADAPTED))
    change = relative_improvement(result)
    onsets = {name: result.measurements[name].onsets for name in media.mel_images}
    return {
        "number": number,
        "id": clip.id,
        "video": clip.video,
        "time_range": f"{clip.start:g} to {clip.end:g} s",
        "seconds": clip.seconds,
        "caption": clip.caption,
        "trained": result.trained,
        "improvement": change if math.isfinite(change) else None,
        "change": _describe_change(change),
        "style": STYLES[BETTER if change > 0 else WORSE] if abs(change) >= MIN_CHANGE else STYLES[UNSURE],
        "base": format_number(base),
        "adapted": format_number(adapted),
        "files": media.files,
        "poster": media.poster,
        "mel_images": media.mel_images,
        "onsets": {
            name: onset_strip(times, result.measurements[ORIGINAL].onsets, clip.seconds)
            for name, times in onsets.items()
        },
    }


def _describe_change(change: float) -> str:
    if not math.isfinite(change):
        return ""
    side = "closer" if change > 0 else "further"
    return f"{100 * abs(change):.0f}{THIN_SPACE}% {side}" if abs(change) >= MIN_CHANGE else "as close"


def largest_changes(cards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The clips that changed most for the better, and for the worse; a side without any is left out."""
    ranked = sorted((card for card in cards if card["improvement"]), key=lambda card: -card["improvement"])
    improved = [card for card in ranked if card["improvement"] >= MIN_CHANGE][:NUM_EXTREMES]
    worsened = [card for card in reversed(ranked) if card["improvement"] <= -MIN_CHANGE][:NUM_EXTREMES]
    sides = {"Most improved": improved, "Most worsened": worsened}
    return [{"title": title, "cards": side} for title, side in sides.items() if side]


def page_data(results: Results, cards: Sequence[dict[str, Any]], model: str, date: str) -> dict[str, Any]:
    """The data of the page's script: files and values by clip, and an identity for votes.

    `cards`: those of the clips that are played.
    """
    metrics = _clip_metrics(results)
    sounds = [sound["name"] for sound in available_sounds(results)]
    values = {name: {sound: [_to_json(v) for v in results.values(sound, name)] for sound in sounds} for name in metrics}
    identity = json.dumps([model, [result.clip.id for result in results.clips], values], sort_keys=True)
    return {
        "id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "model": model,
        "date": date,
        "sounds": sounds,
        "metrics": [_describe_metric(name, metric) for name, metric in metrics.items()],
        "values": values,
        "played": [card["number"] - 1 for card in cards],
        "clips": [_describe_clip(result) for result in results.clips],
    }


def _describe_clip(result: ClipResult) -> dict[str, Any]:
    clip, change = result.clip, relative_improvement(result)
    return {
        "id": clip.id,
        "video": clip.video,
        "start": clip.start,
        "seconds": clip.seconds,
        "improvement": change if math.isfinite(change) else None,
        "files": result.media.files,
    }


def clip_table(results: Results) -> dict[str, Any]:
    """The table by clip: the metrics to choose from, and the rows of the first one shown."""
    metrics = _clip_metrics(results)
    first = PRIMARY if PRIMARY in metrics else next(iter(metrics), "")
    return {
        "metrics": [_describe_metric(name, metric) for name, metric in metrics.items()],
        "first": first,
        "rows": [_clip_row(number, result, first) for number, result in enumerate(results.clips, 1)],
    }


def _clip_row(number: int, result: ClipResult, metric: str) -> dict[str, Any]:
    values = {sound: result.value(sound, metric) for sound in TITLES}
    change = values[ADAPTED] - values[BASE]
    return {
        "number": number,
        "video": result.clip.video,
        "is_played": bool(result.media.files),
        "start": result.clip.start,
        "text": {sound: format_number(value) for sound, value in values.items()},
        "sort": {sound: format_sortable(value) for sound, value in values.items()},
        "change": format_signed(change),
        "sort_change": format_sortable(change),
    }


def _clip_metrics(results: Results) -> Mapping[str, Metric]:
    """The metrics that have values by clip."""
    return {name: metric for name, metric in METRICS.items() if not metric.of_set and results.has_values(name)}


def _describe_metric(name: str, metric: Metric) -> dict[str, str]:
    return {"name": name, "title": metric.title, "unit": metric.unit, "better": metric.better}


def frequency_marks(sample_rate: int) -> list[dict[str, Any]]:
    """Positions of frequencies on a mel spectrogram up to half of `sample_rate`: label, share of the height from below.

    Slaney's mel scale, as the codec's: linear to 1 kHz, then logarithmic.
    """
    top = _to_mel(sample_rate / 2)
    return [
        {"label": f"{hertz}" if hertz < 1000 else f"{hertz // 1000}k", "share": f"{_to_mel(hertz) / top:.4f}"}
        for hertz in FREQUENCIES
        if hertz < 0.45 * sample_rate
    ]


def _to_mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _to_json(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
