"""How validation has gone: the losses of every clip at every evaluation, and what an improvement is worth.

The same clips are measured every time, at the same times and noise, so one adapter is better than another by the mean
of the clips' differences; its interval allows for clips of one video being alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Coverage of an interval."""


@dataclass(frozen=True)
class Change:
    """Mean of the clips' differences in loss; below zero is better."""

    mean: float
    interval: tuple[float, float] | None
    """95 %; None for clips of a single video."""

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.4f}"
        return f"{self.mean:+.4f}, 95 % interval {self.interval[0]:+.4f} to {self.interval[1]:+.4f}"


def change(before: Sequence[float], after: Sequence[float], videos: Sequence[str]) -> Change:
    """From the losses `before` to those `after`, clip by clip; `videos` names each clip's source.

    The interval is Student's t with as many degrees of freedom as there are videos, less one, on the jackknife's
    standard error: how far the mean moves as each video in turn is left out. It holds up where one video has most of
    the clips (`test_progress` says how well). Source: CV3 of MacKinnon, Nielsen and Webb, Fast and reliable jackknife
    and bootstrap methods for cluster-robust inference, Journal of Applied Econometrics 38, 2023.
    """
    differences = np.subtract(after, before)
    mean = float(differences.mean())
    names = sorted(set(videos))
    if len(names) < 2:
        return Change(mean, None)
    own = np.array(videos)
    moved = np.array([differences[own != name].mean() - mean for name in names])
    error = math.sqrt((len(names) - 1) / len(names) * float((moved**2).sum()))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(names) - 1)) * error
    return Change(mean, (mean - half, mean + half))


@dataclass(frozen=True)
class Evaluation:
    """Losses of the held-out clips, each the mean over its times."""

    step: int
    losses: list[float]
    average: list[float] | None = None
    """The same with the running average of the adapter, where that was measured."""

    @property
    def loss(self) -> float:
        """Mean over the clips."""
        return _mean(self.losses)

    @property
    def average_loss(self) -> float:
        """The running average's mean, infinite where it was not measured."""
        return math.inf if self.average is None else _mean(self.average)

    @property
    def averaged(self) -> bool:
        """Whether the running average is the better of the two."""
        return self.average_loss < self.loss

    @property
    def better(self) -> list[float]:
        """The losses of the better of the two."""
        return self.average if self.average is not None and self.averaged else self.losses


@dataclass
class Progress:
    """All evaluations so far, and which of them counts."""

    videos: list[str] = field(default_factory=list)
    """Source of every held-out clip."""
    history: list[Evaluation] = field(default_factory=list)
    best_at: int = -1
    """Index of the evaluation with the lowest loss."""
    reference_at: int = -1
    """Index of the one where the losses last fell."""
    stale: int = 0
    """Evaluations since the last improvement."""

    @property
    def evaluated(self) -> int:
        """Step of the last evaluation; -1 before the first."""
        return self.history[-1].step if self.history else -1

    @property
    def best(self) -> float:
        """The lowest loss; infinite before the first evaluation."""
        return _mean(self.history[self.best_at].better) if self.history else math.inf

    @property
    def best_step(self) -> int:
        """Where that was; -1 before the first evaluation."""
        return self.history[self.best_at].step if self.history else -1

    @property
    def base(self) -> float:
        """The base model's loss."""
        return self.history[0].loss if self.history else math.inf

    def take_in(self, evaluation: Evaluation, min_delta: float) -> bool:
        """Note an evaluation; whether it is the best so far.

        It counts as an improvement where the clips' losses fell by more than `min_delta` on average since the last one,
        or the running average beats the best so far by as much.
        """
        self.history.append(evaluation)
        now = len(self.history) - 1
        if now == 0:
            self.best_at = self.reference_at = 0
            return True
        since = change(self.history[self.reference_at].losses, evaluation.losses, self.videos)
        falls = since.mean < -min_delta
        improved = falls or _mean(evaluation.better) < self.best - min_delta
        self.reference_at = now if falls else self.reference_at
        self.stale = 0 if improved else self.stale + 1
        if _mean(evaluation.better) < self.best:
            self.best_at = now
        return self.best_at == now

    def from_base(self, losses: list[float]) -> Change:
        """How `losses` differ from the base model's."""
        return change(self.history[0].losses, losses, self.videos)

    def gain(self) -> Change:
        """How the best adapter differs from the base model."""
        return self.from_base(self.history[self.best_at].better)

    def plain(self) -> dict[str, Any]:
        """Plain values, for the state's file."""
        rows = [(row.step, row.losses, row.average) for row in self.history]
        return {**vars(self), "history": rows}

    @classmethod
    def restored(cls, plain: dict[str, Any]) -> Progress:
        """The object that `plain` described."""
        return cls(**{**plain, "history": [Evaluation(*row) for row in plain["history"]]})


def _mean(losses: list[float]) -> float:
    return math.fsum(losses) / len(losses)
