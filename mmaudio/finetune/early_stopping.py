"""Validation history and early stopping: the losses of every clip at every evaluation, the best one, the patience.

The same clips are measured every time, at the same times and noise, so one adapter is better than another by the mean
of the clips' differences; its interval allows for clips of one video being alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CONFIDENCE_LEVEL = 0.95
"""Coverage of an interval."""


@dataclass(frozen=True)
class Change:
    """Mean of the clips' differences in loss; below zero is better."""

    mean: float
    interval: tuple[float, float] | None
    """95 %; None for clips of a single video."""

    @property
    def is_significant(self) -> bool:
        """True where the interval leaves out zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.4f}"
        return f"{self.mean:+.4f}, 95 % interval {self.interval[0]:+.4f} to {self.interval[1]:+.4f}"


def compute_paired_change(before: Sequence[float], after: Sequence[float], videos: Sequence[str]) -> Change:
    """The change from the losses `before` to those `after`, clip by clip; `videos` names each clip's source.

    The interval is Student's t with as many degrees of freedom as there are videos, less one, on the jackknife's
    standard error: how far the mean moves as each video in turn is left out. It holds up where one video has most of
    the clips (`test_early_stopping` says how well). Source: CV3 of MacKinnon, Nielsen and Webb, Fast and reliable
    jackknife and bootstrap methods for cluster-robust inference, Journal of Applied Econometrics 38, 2023.
    """
    differences = np.subtract(after, before)
    mean = float(differences.mean())
    video_names = sorted(set(videos))
    if len(video_names) < 2:
        return Change(mean, None)
    clip_videos = np.array(videos)
    shifts = np.array([differences[clip_videos != name].mean() - mean for name in video_names])
    error = math.sqrt((len(video_names) - 1) / len(video_names) * float((shifts**2).sum()))
    from scipy import stats  # slow to import

    half_width = float(stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, len(video_names) - 1)) * error
    return Change(mean, (mean - half_width, mean + half_width))


@dataclass(frozen=True)
class Evaluation:
    """Losses of the validation clips, each the mean over its flow times."""

    step: int
    losses: list[float]
    ema_losses: list[float] | None = None
    """The same with the EMA of the adapter, where that was measured."""

    @property
    def loss(self) -> float:
        """Mean over the clips."""
        return _mean(self.losses)

    @property
    def ema_loss(self) -> float:
        """The EMA's mean over the clips, infinite where it was not measured."""
        return math.inf if self.ema_losses is None else _mean(self.ema_losses)

    @property
    def ema_is_better(self) -> bool:
        """True where the EMA has the lower loss."""
        return self.ema_loss < self.loss

    @property
    def best_losses(self) -> list[float]:
        """The clips' losses with the adapter or with its EMA, whichever has the lower mean."""
        return self.ema_losses if self.ema_losses is not None and self.ema_is_better else self.losses


@dataclass
class ValidationHistory:
    """All evaluations of a run, which of them is the best, and how many did not improve on it."""

    videos: list[str] = field(default_factory=list)
    """Source of every validation clip."""
    evaluations: list[Evaluation] = field(default_factory=list)
    best_index: int = -1
    """Of the evaluation with the lowest loss."""
    reference_index: int = -1
    """Of the evaluation at which the adapter's losses last fell."""
    num_bad_evaluations: int = 0
    """Evaluations since the last improvement; early stopping compares it with the patience."""

    @property
    def last_step(self) -> int:
        """Step of the last evaluation; -1 before the first."""
        return self.evaluations[-1].step if self.evaluations else -1

    @property
    def best_loss(self) -> float:
        """The lowest loss; infinite before the first evaluation."""
        return _mean(self.evaluations[self.best_index].best_losses) if self.evaluations else math.inf

    @property
    def best_step(self) -> int:
        """Step of the lowest loss; -1 before the first evaluation."""
        return self.evaluations[self.best_index].step if self.evaluations else -1

    @property
    def base_loss(self) -> float:
        """The base model's loss; infinite before the first evaluation."""
        return self.evaluations[0].loss if self.evaluations else math.inf

    def add(self, evaluation: Evaluation, min_delta: float) -> bool:
        """Append an evaluation; True where it is the best so far.

        It counts as an improvement where the clips' losses fell by more than `min_delta` on average since the last one,
        or the EMA beats the best so far by as much.
        """
        self.evaluations.append(evaluation)
        index = len(self.evaluations) - 1
        if index == 0:
            self.best_index = self.reference_index = 0
            return True
        change = compute_paired_change(self.evaluations[self.reference_index].losses, evaluation.losses, self.videos)
        losses_fell, loss = change.mean < -min_delta, _mean(evaluation.best_losses)
        improved = losses_fell or loss < self.best_loss - min_delta
        self.reference_index = index if losses_fell else self.reference_index
        self.num_bad_evaluations = 0 if improved else self.num_bad_evaluations + 1
        if loss < self.best_loss:
            self.best_index = index
        return self.best_index == index

    def change_from_base(self, losses: list[float]) -> Change:
        """The change from the base model's losses to `losses`."""
        return compute_paired_change(self.evaluations[0].losses, losses, self.videos)

    def best_change(self) -> Change:
        """The change from the base model to the best adapter."""
        return self.change_from_base(self.evaluations[self.best_index].best_losses)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the state's file."""
        return {
            "videos": self.videos,
            "history": [(each.step, each.losses, each.ema_losses) for each in self.evaluations],
            "best_at": self.best_index,
            "reference_at": self.reference_index,
            "stale": self.num_bad_evaluations,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ValidationHistory:
        """The history that `state_dict` described."""
        evaluations = [Evaluation(*row) for row in state["history"]]
        return cls(state["videos"], evaluations, state["best_at"], state["reference_at"], state["stale"])


def _mean(losses: list[float]) -> float:
    return math.fsum(losses) / len(losses)
