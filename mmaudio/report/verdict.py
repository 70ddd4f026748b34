"""The words of a report: the verdict by a fixed rule, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmaudio.evaluation.results import Results
from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.statistics import BETTER, FEWEST_VIDEOS, MIXED, PRIMARY, UNSURE, WORSE, Comparison, overall
from mmaudio.report.charts import interval_chart

STYLES = {BETTER: "good", WORSE: "bad", UNSURE: "unsure", MIXED: "unsure"}
SIGNS = {BETTER: "✓", WORSE: "✗", UNSURE: "≈", MIXED: "±"}
HEADLINES = {
    BETTER: "Better: the adapter brings held-out clips closer to their originals",
    WORSE: "Worse: the adapter takes held-out clips further from their originals",
    UNSURE: "Cannot tell: these held-out clips show no clear difference",
    MIXED: "Mixed: better in one respect, worse in another",
}
ANSWERS = {BETTER: "Better", WORSE: "Worse", UNSURE: "Cannot tell", MIXED: "Mixed"}
FORGOTTEN = {BETTER: "Nothing: better there, too", WORSE: "Worse on other sounds", UNSURE: "Cannot tell"}
FEW = "Too few held-out videos for a verdict"
UNDECIDED = "No verdict: too few held-out videos have a value of the metric that decides"
METHOD = (
    "Base and adapted model make a sound for the same clip from the same noise, and both are compared with the clip's "
    "original sound. Clips of one video are not independent, so the differences (adapted minus base) are averaged "
    "within each video, and the 95 % interval is Student's t over the videos. Better or worse is said where the "
    f"interval excludes zero and there are at least {FEWEST_VIDEOS} videos; otherwise nobody can tell with this many. "
    f"The verdict at the top is that of the {METRICS[PRIMARY].title.lower()}, or mixed where another metric that "
    "counts says the opposite. Codec is the original through the model's codec and back: what the codec alone loses."
)
TWICE = (
    "There were too few videos for two held-out parts: the clips compared here also chose the best step of training, "
    "so the adapter looks a little better here than it is."
)
NOTHING = 5e-7
"""Sizes below this are shown as zero."""
THIN = "\u202f"
"""A narrow space that does not break."""


def number(value: float) -> str:
    """Three significant digits or more, at most six behind the point; a true minus sign; a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size < NOTHING:
        return "0.000"
    places = 3 if size >= 0.1 else min(6, 2 - math.floor(math.log10(size)))
    text = f"{value:.{places}f}" if size < 10 else (f"{value:.4g}" if size < 1000 else f"{value:,.0f}")
    return text.replace("-", "−")


def signed(value: float) -> str:
    """`number` that always has its sign, where it is not zero."""
    return ("+" if value >= NOTHING else "") + number(value)


def percent(part: float, whole: float) -> str:
    """A change relative to `whole`, signed, with tenths below 10 %; empty where `whole` is about zero."""
    if abs(whole) < 1e-6:
        return ""
    share = 100 * part / abs(whole)
    text = f"{share:+.0f}" if abs(share) >= 9.95 else f"{share:+.1f}".replace("+0.0", "0").replace("-0.0", "0")
    return f"{text}{THIN}%".replace("-", "−")


def count(many: int, what: str) -> str:
    """A number and its noun, in the plural where it has to be."""
    return f"{many} {what}{'' if many == 1 else 's'}"


def gain(metric: str, change: float) -> float:
    """A change of a metric, positive where it is for the better."""
    return -change if METRICS[metric].better == "lower" else change


def verdict(held_out: Results, general: Results | None, why_none: str, twice: bool) -> dict[str, Any]:
    """The report's first lines: style, sign, headline, sentences, and the answers to four questions.

    `why_none`: why forgetting was not measured; `twice`: whether the held-out clips also served for validation.
    """
    metrics = held_out.comparisons()
    word, few = overall(metrics), _few(metrics)
    sentences = [TWICE] if twice else []
    if held_out.trained:
        sentences.append(
            f"{held_out.trained} of these {count(len(held_out.clips), 'clip')} are of videos that the adapter was "
            "trained on: what is said below is not about videos that it never saw."
        )
    if few:
        sentences.append(
            f"With fewer than {FEWEST_VIDEOS} held-out videos chance cannot be told from change: the numbers below "
            "describe these clips and no others. Listen, and add videos for a verdict."
        )
    elif _undecided(metrics):
        sentences.append(
            f"The {METRICS[PRIMARY].title.lower()} decides, and its value is known for "
            f"{count(metrics[PRIMARY].videos if PRIMARY in metrics else 0, 'held-out video')}, those whose originals "
            f"have a loud part; at least {FEWEST_VIDEOS} are needed."
        )
    answers = [_better(metrics, word, few), _sure(metrics), _forgotten(general, why_none), _strength(held_out)]
    return {
        "style": STYLES[UNSURE if few else word],
        "sign": SIGNS[UNSURE if few else word],
        "headline": _headline(metrics),
        "sentences": sentences,
        "answers": [answer for answer in answers if answer],
    }


def _few(metrics: Mapping[str, Comparison]) -> bool:
    return max((metric.videos for metric in metrics.values()), default=0) < FEWEST_VIDEOS


def _undecided(metrics: Mapping[str, Comparison]) -> bool:
    """Whether there are enough videos, but not of the metric that decides."""
    return not _few(metrics) and (PRIMARY not in metrics or metrics[PRIMARY].videos < FEWEST_VIDEOS)


def _headline(metrics: Mapping[str, Comparison]) -> str:
    if _few(metrics):
        return FEW
    return UNDECIDED if _undecided(metrics) else HEADLINES[overall(metrics)]


def _better(metrics: Mapping[str, Comparison], word: str, few: bool) -> dict[str, str]:
    answer = {"question": "Is it better on your videos?", "style": STYLES[UNSURE if few else word], "chart": ""}
    answer["answer"] = "Too few videos" if few else ANSWERS[word]
    if PRIMARY not in metrics:
        return answer | {"text": f"The {METRICS[PRIMARY].title.lower()} has no value on these clips."}
    text = f"Where the original is audible, the distance to it went {_change(metrics[PRIMARY])}."
    if "onset_f1" in metrics:
        text += f" Agreement of onsets in time (F1, 1 is perfect) went {_change(metrics['onset_f1'])}."
    return answer | {"text": text, "chart": _picture(PRIMARY, metrics[PRIMARY])}


def _sure(metrics: Mapping[str, Comparison]) -> dict[str, str]:
    if PRIMARY not in metrics:
        return {}
    metric = metrics[PRIMARY]
    better = f"{_improved(metric)} of {count(metric.clips, 'clip')}"
    text = f"The distance became smaller in {better}. "
    if metric.interval is None:
        text += "One video gives no interval: how other videos would fare is not known."
    else:
        low, high = (percent(end, metric.base) or signed(end) for end in metric.interval)
        text += (
            f"Over videos like these, the mean change lies between {low} and {high} (95{THIN}% interval from "
            f"{count(metric.videos, 'video')}; it narrows with more)."
        )
    answer = f"{count(metric.videos, 'video')}, {count(metric.clips, 'clip')}"
    return {"question": "How sure is that?", "style": "plain", "answer": answer, "text": text, "chart": ""}


def _forgotten(general: Results | None, why_none: str) -> dict[str, str]:
    question = {"question": "What did it forget?", "style": "plain", "chart": ""}
    metrics = {} if general is None else general.comparisons()
    if PRIMARY not in metrics:
        text = f"What the model forgot was not measured: {why_none or 'these clips give no value'}."
        return question | {"answer": "Not measured", "text": text}
    metric = metrics[PRIMARY]
    word = UNSURE if metric.videos < FEWEST_VIDEOS else metric.verdict
    text = f"On other sounds, of the base's own domain, the same distance went {_change(metric)}."
    return question | {
        "answer": FORGOTTEN[word],
        "style": STYLES[word],
        "text": text,
        "chart": _picture(PRIMARY, metric),
    }


def _strength(held_out: Results) -> dict[str, str]:
    if not held_out.strengths:
        return {}
    best = held_out.recommended
    answer = "None of those tried" if best is None else f"{best:g}"
    tried = ", ".join(f"{strength:g}" for strength in sorted(held_out.strengths))
    text = f"{held_out.recommendation} Tried: {tried}; 0 is the base, 1 the adapter as trained.".strip()
    return {"question": "At which strength?", "style": "plain", "answer": answer, "text": text, "chart": ""}


def _picture(name: str, metric: Comparison) -> str:
    low, high = metric.interval or (metric.difference, metric.difference)
    ends = sorted(gain(name, end) for end in (low, high))
    limit = 1.1 * max(abs(low), abs(high), abs(metric.difference), 0.1 * abs(metric.base), 1e-9)
    style = STYLES[UNSURE if metric.videos < FEWEST_VIDEOS else metric.verdict]
    return interval_chart(ends[0], gain(name, metric.difference), ends[1], limit, style)


def _change(metric: Comparison) -> str:
    text = f"from {number(metric.base)} to {number(metric.adapted)}"
    change = percent(metric.difference, metric.base)
    if metric.interval is None:
        return f"{text} ({change})" if change else text
    low, high = (percent(end, metric.base) or signed(end) for end in metric.interval)
    judged = "" if metric.videos < FEWEST_VIDEOS else f"; {metric.verdict}"
    return f"{text} ({change + ', ' if change else ''}95{THIN}% interval {low} to {high}{judged})"


def rows(metrics: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    """The lines of a table of metrics: texts, and the values that it is sorted by."""
    return [_row(name, metric) for name, metric in metrics.items()]


def _row(name: str, metric: Comparison) -> dict[str, Any]:
    about = METRICS[name]
    interval = "none" if metric.interval is None else " to ".join(signed(end) for end in metric.interval)
    enough = metric.videos >= FEWEST_VIDEOS
    values = {"original": metric.original, "codec": metric.codec, "base": metric.base, "adapted": metric.adapted}
    return {
        "title": about.title,
        "unit": about.unit,
        "better": metric.better,
        "counts": about.counts,
        "shown": {key: "" if value is None else number(value) for key, value in values.items()},
        "sort": {key: "" if value is None else f"{value:.9g}" for key, value in values.items()},
        "difference": signed(metric.difference),
        "percent": percent(metric.difference, metric.base),
        "gain": f"{gain(name, metric.difference) / max(abs(metric.base), 1e-9):.9g}",
        "interval": interval,
        "chart": _picture(name, metric),
        "verdict": metric.verdict if enough else "too few videos",
        "style": STYLES[metric.verdict] if enough else STYLES[UNSURE],
        "improved": _improved(metric),
        "share": "" if metric.share_better is None else f"{metric.share_better:.9g}",
        "clips": metric.clips,
        "of_set": about.of_set,
        "alone": about.alone,
    }


def _improved(metric: Comparison) -> str:
    """How many clips are better; empty for a value of the whole set."""
    return "" if metric.share_better is None else f"{metric.share_better * metric.clips:.0f}"


def terminal(metrics: Mapping[str, Comparison]) -> list[str]:
    """A few lines that say the same in a terminal."""
    lines = [_headline(metrics) + (f": at least {FEWEST_VIDEOS} are needed" if _few(metrics) else "")]
    for name, metric in metrics.items():
        ends = [signed(end) for end in metric.interval or ()]
        interval = f", 95 % interval {' to '.join(ends)}" if ends else ""
        lines.append(
            f"  {METRICS[name].title}: {number(metric.base)} -> {number(metric.adapted)} "
            f"({signed(metric.difference)}{interval}): {metric.verdict}"
        )
    return lines
