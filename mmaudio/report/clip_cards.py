"""What a report shows and plays of each clip: cards, the table by clip, the most improved and the most worsened."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from mmaudio.evaluation.results import ClipResult, Results
from mmaudio.metrics.registry import ADAPTED, BASE, CODEC, METRICS, ORIGINAL
from mmaudio.metrics.statistics import BETTER, PRIMARY, UNSURE, WORSE
from mmaudio.report.charts import onset_marks
from mmaudio.report.verdict import STYLES, THIN, gain, number, signed

TITLES = {ORIGINAL: "Original", BASE: "Base", ADAPTED: "Adapted", CODEC: "Codec"}
"""Sounds in the order of their keys: 1, 2, 3, and 4 where the codec's round trip is there."""
EXTREMES = 3
"""Clips that are shown as the most improved, and as the most worsened."""
EVEN = 0.005
"""Relative change below which a clip counts as neither better nor worse."""
TINY = 1e-6
"""Distance below which a relative change says nothing."""
FREQUENCIES = (250, 1000, 4000, 16_000)
"""Hertz that are marked beside a spectrogram."""


def sources(results: Results) -> list[dict[str, str]]:
    """The sounds that clips have, in order."""
    return [{"key": key, "title": title} for key, title in TITLES.items() if any(key in c.media for c in results.clips)]


def cards(results: Results) -> list[dict[str, Any]]:
    """What each clip's card shows."""
    return [_card(index, result) for index, result in enumerate(results.clips, 1)]


def _card(index: int, result: ClipResult) -> dict[str, Any]:
    clip, sounds = result.clip, result.sounds
    base, adapted = (sounds[name].values.get(PRIMARY, math.nan) for name in (BASE, ADAPTED))
    change = gain(PRIMARY, adapted - base) / base if base > TINY else math.nan
    original = sounds[ORIGINAL].onsets
    return {
        "index": index,
        "id": clip.id,
        "video": clip.video,
        "span": f"{clip.start:g} to {clip.end:g} s",
        "seconds": clip.seconds,
        "caption": clip.caption,
        "trained": result.trained,
        "gain": change if math.isfinite(change) else None,
        "change": _nearer(change),
        "style": STYLES[BETTER if change > 0 else WORSE] if abs(change) >= EVEN else STYLES[UNSURE],
        "base": number(base),
        "adapted": number(adapted),
        "media": result.media,
        "poster": result.poster,
        "mels": result.mels,
        "onsets": {name: onset_marks(sounds[name].onsets, original, clip.seconds) for name in result.mels},
    }


def _nearer(change: float) -> str:
    if not math.isfinite(change):
        return ""
    side = "closer" if change > 0 else "further"
    return f"{100 * abs(change):.0f}{THIN}% {side}" if abs(change) >= EVEN else "as close"


def extremes(made: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The clips that changed most for the better, and for the worse; a side without any is left out."""
    known = sorted((card for card in made if card["gain"]), key=lambda card: -card["gain"])
    sides = [
        ("Most improved", [card for card in known if card["gain"] >= EVEN][:EXTREMES]),
        ("Most worsened", [card for card in reversed(known) if card["gain"] <= -EVEN][:EXTREMES]),
    ]
    return [{"title": title, "cards": part} for title, part in sides if part]


def page_data(results: Results, made: Sequence[dict[str, Any]], model: str, date: str) -> dict[str, Any]:
    """What the page's script works with: files and values by clip, and an identity for votes.

    `made`: the cards of the same clips.
    """
    names = [name for name, metric in METRICS.items() if not metric.of_set and results.knows(name)]
    keys = [source["key"] for source in sources(results)]
    values = {name: {key: [_strict(v) for v in results.values(key, name)] for key in keys} for name in names}
    ids = [result.clip.id for result in results.clips]
    about = json.dumps([model, ids, values], sort_keys=True)
    return {
        "id": hashlib.sha256(about.encode()).hexdigest()[:16],
        "model": model,
        "date": date,
        "sources": keys,
        "metrics": [
            {"name": n, "title": METRICS[n].title, "unit": METRICS[n].unit, "better": METRICS[n].better} for n in names
        ],
        "values": values,
        "clips": [
            {"id": card["id"], "video": card["video"], "start": result.clip.start, "seconds": card["seconds"]}
            | {"gain": card["gain"], "media": card["media"]}
            for card, result in zip(made, results.clips, strict=True)
        ],
    }


def clip_table(results: Results) -> dict[str, Any]:
    """The table by clip: the metrics to choose from, and the lines of the first one shown."""
    known = {name: metric for name, metric in METRICS.items() if not metric.of_set and results.knows(name)}
    first = PRIMARY if PRIMARY in known else next(iter(known), "")
    lines = []
    for index, result in enumerate(results.clips, 1):
        values = {key: _value(result, key, first) for key in TITLES}
        change = values[ADAPTED] - values[BASE]
        lines.append(
            {
                "index": index,
                "video": result.clip.video,
                "start": result.clip.start,
                "shown": {key: number(value) for key, value in values.items()},
                "sort": {key: "" if math.isnan(value) else f"{value:.9g}" for key, value in values.items()},
                "change": signed(change),
                "sort_change": "" if math.isnan(change) else f"{change:.9g}",
            }
        )
    return {
        "metrics": [{"name": name, "title": m.title, "unit": m.unit, "better": m.better} for name, m in known.items()],
        "first": first,
        "rows": lines,
    }


def frequency_marks(rate: int) -> list[dict[str, Any]]:
    """Where frequencies lie on a mel picture of a codec at `rate` samples per second: label, share from below.

    Slaney's mel scale, as the codec's: linear to 1 kHz, then logarithmic.
    """
    top = _mel(rate / 2)
    marked = [hertz for hertz in FREQUENCIES if hertz < 0.45 * rate]
    return [
        {"label": f"{hertz}" if hertz < 1000 else f"{hertz // 1000}k", "share": f"{_mel(hertz) / top:.4f}"}
        for hertz in marked
    ]


def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _value(result: ClipResult, key: str, name: str) -> float:
    return result.sounds[key].values.get(name, math.nan) if key in result.sounds else math.nan


def _strict(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
