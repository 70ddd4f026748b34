"""Verdict of an evaluation in words, by a fixed rule, for the report and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmaudio.evaluation.results import Results
from mmaudio.metrics.registry import METRICS, PRIMARY
from mmaudio.metrics.statistics import BETTER, MIN_VIDEOS, MIXED, UNSURE, WORSE, Comparison, overall_verdict
from mmaudio.report.metric_table import STYLES, improvement_chart, num_improved, verdict_style
from mmaudio.report.number_format import THIN_SPACE, format_number, format_percent, format_signed, plural

SIGNS = {BETTER: "✓", WORSE: "✗", UNSURE: "≈", MIXED: "±"}
HEADLINES = {
    BETTER: "Better: the adapter brings held-out clips closer to their originals",
    WORSE: "Worse: the adapter takes held-out clips further from their originals",
    UNSURE: "Cannot tell: these held-out clips show no clear difference",
    MIXED: "Mixed: better in one respect, worse in another",
}
TOO_FEW = "Too few held-out videos for a verdict"
UNDECIDED = "No verdict: too few held-out videos have a value of the metric that decides"
ANSWERS = {BETTER: "Better", WORSE: "Worse", UNSURE: "Cannot tell", MIXED: "Mixed"}
FORGETTING_ANSWERS = {BETTER: "Nothing: better there, too", WORSE: "Worse on other audio", UNSURE: "Cannot tell"}
METHOD = (
    "The base and the adapted model generate audio for the same clip from the same noise, and both are compared with "
    "the clip's original audio. Clips of one video are not independent, so the differences (adapted minus base) are "
    "averaged within each video, and the 95 % interval is Student's t over the videos. The verdict is better or worse "
    f"where the interval excludes zero and there are at least {MIN_VIDEOS} videos; otherwise this many videos cannot "
    f"tell. The verdict at the top is that of the {METRICS[PRIMARY].title.lower()}, or mixed where another metric that "
    "counts says the opposite. Codec is the original through the model's codec and back: what the codec alone loses."
)
FOLD_METHOD = (
    " The videos are divided into folds: for each, an adapter was trained on the others with these settings, and its "
    "best step chosen on some of those. All videos are pooled. The folds share most of their training videos: what "
    "chance did there is in all of them alike, and the interval is widened for it. Its variance is multiplied by "
    "1 + K / (K - 1) for K folds (Nadeau and Bengio 2003). Metrics of whole sets of sounds stay with the folds' own "
    "reports."
)
RECIPE = (
    "This is a verdict of the recipe: every video was judged with an adapter of these settings that was trained "
    "without it. The adapter that you get is trained on all videos, with no video left to judge it by itself."
)
VALIDATION_CLIPS = (
    "There were too few videos for separate validation and test videos: the clips compared here also chose the best "
    "step of training, so the adapter looks a little better here than it is."
)


def verdict_section(
    held_out: Results, general: Results | None, no_general_reason: str, validation_is_test: bool, prompts: str = ""
) -> dict[str, Any]:
    """The report's first lines: style, sign, headline, sentences, and the answers to four questions.

    `no_general_reason`: why forgetting was not measured on videos; `validation_is_test`: whether held-out clips also
    served for validation; `prompts`: how far sounds of generic prompts moved, a sentence.
    """
    comparisons = held_out.comparisons()
    verdict = UNSURE if _too_few(comparisons) else overall_verdict(comparisons)
    answers = [
        _answer_better(comparisons),
        _answer_certainty(comparisons),
        answer_forgetting({} if general is None else general.comparisons(), no_general_reason, prompts),
        _answer_strength(held_out),
    ]
    return {
        "style": STYLES[verdict],
        "sign": SIGNS[verdict],
        "headline": _headline(comparisons),
        "sentences": [VALIDATION_CLIPS] * validation_is_test + _reservations(held_out, comparisons),
        "answers": [answer for answer in answers if answer],
    }


def terminal_lines(comparisons: Mapping[str, Comparison]) -> list[str]:
    """The verdict and every metric as lines for a terminal."""
    lines = [describe_verdict(comparisons)]
    for name, comparison in comparisons.items():
        ends = [format_signed(end) for end in comparison.interval or ()]
        interval = f", 95 % interval {' to '.join(ends)}" if ends else ""
        lines.append(
            f"  {METRICS[name].title}: {format_number(comparison.base)} -> {format_number(comparison.adapted)} "
            f"({format_signed(comparison.difference)}{interval}): {comparison.verdict}"
        )
    return lines


def describe_verdict(comparisons: Mapping[str, Comparison]) -> str:
    """The verdict as a line."""
    return _headline(comparisons) + (f": at least {MIN_VIDEOS} are needed" if _too_few(comparisons) else "")


def _reservations(held_out: Results, comparisons: Mapping[str, Comparison]) -> list[str]:
    """Sentences that limit what the verdict says."""
    sentences = [RECIPE] if held_out.num_folds else []
    if held_out.num_trained:
        sentences.append(
            f"{held_out.num_trained} of these {plural(len(held_out.clips), 'clip')} are of videos that the adapter was "
            "trained on: the results below are not about unseen videos."
        )
    if _too_few(comparisons):
        sentences.append(
            f"With fewer than {MIN_VIDEOS} held-out videos chance cannot be told from change: the numbers below "
            "describe these clips and no others. Listen, and add videos for a verdict."
        )
    elif _is_undecided(comparisons):
        num_videos = comparisons[PRIMARY].videos if PRIMARY in comparisons else 0
        sentences.append(
            f"The {METRICS[PRIMARY].title.lower()} decides, and its value is known for "
            f"{plural(num_videos, 'held-out video')}, those whose originals have a loud part; at least {MIN_VIDEOS} "
            "are needed."
        )
    return sentences


def _too_few(comparisons: Mapping[str, Comparison]) -> bool:
    return max((comparison.videos for comparison in comparisons.values()), default=0) < MIN_VIDEOS


def _is_undecided(comparisons: Mapping[str, Comparison]) -> bool:
    """Whether there are enough videos, but not of the metric that decides."""
    return not _too_few(comparisons) and (PRIMARY not in comparisons or comparisons[PRIMARY].videos < MIN_VIDEOS)


def _headline(comparisons: Mapping[str, Comparison]) -> str:
    if _too_few(comparisons):
        return TOO_FEW
    return UNDECIDED if _is_undecided(comparisons) else HEADLINES[overall_verdict(comparisons)]


def _answer_better(comparisons: Mapping[str, Comparison]) -> dict[str, str]:
    too_few, verdict = _too_few(comparisons), overall_verdict(comparisons)
    answer = {
        "question": "Is it better on your videos?",
        "style": STYLES[UNSURE if too_few else verdict],
        "chart": "",
        "answer": "Too few videos" if too_few else ANSWERS[verdict],
    }
    if PRIMARY not in comparisons:
        return answer | {"text": f"The {METRICS[PRIMARY].title.lower()} has no value on these clips."}
    text = f"Where the original is audible, the distance to it went {_describe_change(comparisons[PRIMARY])}."
    if "onset_f1" in comparisons:
        text += f" Agreement of onsets in time (F1, 1 is perfect) went {_describe_change(comparisons['onset_f1'])}."
    return answer | {"text": text, "chart": improvement_chart(PRIMARY, comparisons[PRIMARY])}


def _answer_certainty(comparisons: Mapping[str, Comparison]) -> dict[str, str]:
    if PRIMARY not in comparisons:
        return {}
    comparison = comparisons[PRIMARY]
    videos, clips = plural(comparison.videos, "video"), plural(comparison.clips, "clip")
    text = f"The distance became smaller in {num_improved(comparison)} of {clips}. "
    if comparison.interval is None:
        text += "One video gives no interval: the change on other videos is not known."
    else:
        low, high = _relative_interval(comparison, comparison.interval)
        text += (
            f"Over videos like these, the mean change lies between {low} and {high} (95{THIN_SPACE}% interval from "
            f"{videos}; it narrows with more)."
        )
    answer = f"{videos}, {clips}"
    return {"question": "How sure is that?", "style": "plain", "answer": answer, "text": text, "chart": ""}


def answer_forgetting(
    comparisons: Mapping[str, Comparison], no_general_reason: str, prompts: str = ""
) -> dict[str, str]:
    """What training made worse, by the comparisons on clips of the base's own domain, and by `prompts`, a sentence."""
    question = {"question": "What did it forget?", "style": "plain", "chart": ""}
    if PRIMARY not in comparisons:
        reason = no_general_reason or "these clips give no value"
        if prompts:
            text = f"{prompts} Whether other audio is worse was not measured: {reason}."
            return question | {"answer": "Measured on prompts alone", "text": text}
        return question | {"answer": "Not measured", "text": f"What the model forgot was not measured: {reason}."}
    comparison = comparisons[PRIMARY]
    text = f"On other audio, of the base's own domain, the same distance went {_describe_change(comparison)}."
    return question | {
        "answer": FORGETTING_ANSWERS[UNSURE if comparison.videos < MIN_VIDEOS else comparison.verdict],
        "style": verdict_style(comparison),
        "text": f"{text} {prompts}".rstrip(),
        "chart": improvement_chart(PRIMARY, comparison),
    }


def _answer_strength(held_out: Results) -> dict[str, str]:
    if not held_out.strengths:
        return {}
    recommended = held_out.recommended
    answer = "None of those tried" if recommended is None else f"{recommended:g}"
    tried = ", ".join(f"{strength:g}" for strength in sorted(held_out.strengths))
    text = f"{held_out.recommendation} Tried: {tried}; 0 is the base, 1 the adapter as trained.".strip()
    return {"question": "At which strength?", "style": "plain", "answer": answer, "text": text, "chart": ""}


def _relative_interval(comparison: Comparison, interval: tuple[float, float]) -> tuple[str, str]:
    """The ends of the interval in per cent of the base, in the metric's own unit where the base is about zero."""
    low, high = (format_percent(end, comparison.base) or format_signed(end) for end in interval)
    return low, high


def _describe_change(comparison: Comparison) -> str:
    """From which value to which, by how much, with the interval and the verdict."""
    text = f"from {format_number(comparison.base)} to {format_number(comparison.adapted)}"
    change = format_percent(comparison.difference, comparison.base)
    if comparison.interval is None:
        return f"{text} ({change})" if change else text
    low, high = _relative_interval(comparison, comparison.interval)
    verdict = "" if comparison.videos < MIN_VIDEOS else f"; {comparison.verdict}"
    return f"{text} ({change + ', ' if change else ''}95{THIN_SPACE}% interval {low} to {high}{verdict})"
