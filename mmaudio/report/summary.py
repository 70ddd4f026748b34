"""Summary of an evaluation for the terminal: verdict, what was forgotten, which strength to use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmaudio.evaluation.result_files import read_comparisons
from mmaudio.evaluation.strength_sweep import FULL
from mmaudio.metrics.statistics import Comparison
from mmaudio.report.verdict import answer_forgetting, describe_verdict, terminal_lines


@dataclass(frozen=True)
class Summary:
    """What an evaluation found."""

    comparisons: Mapping[str, Comparison]
    """On the held-out clips, by metric."""
    forgetting: Mapping[str, Comparison]
    """On clips of the base's own domain."""
    no_forgetting_reason: str = ""
    strength: float | None = None
    """The recommended one; None: none is, or none was tried."""
    recommendation: str = field(default="")
    """Empty where none was tried."""
    prompts: str = ""
    """How far the sounds of generic prompts moved, in a sentence."""
    recipe: str = ""
    """What the verdict of folds is about; empty without folds."""

    def lines(self) -> dict[str, str]:
        """Verdict, forgetting and strength by their labels."""
        answer = answer_forgetting(self.forgetting, self.no_forgetting_reason, self.prompts)
        lines = {"Verdict": describe_verdict(self.comparisons), "Forgot": f"{answer['answer']}. {answer['text']}"}
        if self.recipe:
            lines["Folds"] = self.recipe
        if self.recommendation:
            strength = "none" if self.strength is None else f"{self.strength:g}"
            lines["Strength"] = f"{strength}. {self.recommendation}"
        return lines

    def terminal_lines(self) -> list[str]:
        """The verdict and every metric, then forgetting and strength."""
        lines = terminal_lines(self.comparisons)
        return lines + [f"{label}: {text}" for label, text in self.lines().items() if label != "Verdict"]

    @property
    def strength_flags(self) -> list[str]:
        """The flags with which `mmaudio.generation` uses the recommended strength."""
        return [] if self.strength in (None, FULL) else ["--strength", f"{self.strength:g}"]


def read_summary(path: Path) -> Summary | None:
    """The summary in `metrics.json`; None where there is none, or one of another version."""
    try:
        metrics = json.loads(path.read_text())
        return Summary(
            read_comparisons(metrics, "metrics"),
            read_comparisons(metrics, "forgetting"),
            metrics.get("no_forgetting_reason", ""),
            metrics["recommended_strength"],
            metrics.get("recommendation", ""),
            metrics.get("generic_prompts", {}).get("sentence", ""),
            metrics.get("recipe", ""),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
