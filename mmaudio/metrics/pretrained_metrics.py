"""Metrics that a pretrained model computes: the interface of such a model, its scores, and the search for its files.

    sources = find_pretrained_metrics(search, names)    # pretrained_search.py; loads nothing, says what is missing
    selected = load_metric_models(sources, names)
    scores = [metric.score(clip_audio) for metric in selected.pretrained]

Only small rows of numbers are kept of a sound, so that memory does not grow with its length.

S samples of a clip, D width of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from mmaudio.metrics.metric_inputs import ClipAudio
from mmaudio.weights import store

Array = npt.NDArray[np.float32]

EMBEDDINGS, LOGITS = "embeddings", "class logits"
"""Kinds of rows that a model may give for the metrics of whole sets."""


@dataclass(frozen=True)
class ClipScores:
    """Scores of one clip's sounds by one pretrained model."""

    values: Mapping[str, Mapping[str, float]]
    """By sound, then by metric: means over the samples, NaN where there is no value."""
    model_outputs: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    """By sound, then by kind: rows (S, D) for the metrics of whole sets."""


class PretrainedMetric(Protocol):
    """A pretrained model that scores the sounds of one clip at a time."""

    def score(self, clip: ClipAudio) -> ClipScores:
        """Score every sound of the clip."""
        ...


@dataclass(frozen=True)
class PretrainedSource:
    """A pretrained model whose files are on disk."""

    metrics: tuple[str, ...]
    """Names in METRICS that it computes."""
    identity: str
    """Hash of its files."""
    load: Callable[[], PretrainedMetric]


@dataclass(frozen=True)
class ModelSearch:
    """Where the files of pretrained models are searched, and which may be downloaded."""

    model: str
    """Name of the base model."""
    weights: Path | None = None
    """The user's folder of weights, searched before the usual ones."""
    offline: bool = True
    requested_metrics: Collection[str] = ()
    """Metrics that the user asked for by name: only these are worth a download."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def folders(self) -> list[Path]:
        """Folders in which files of weights are searched, the user's first."""
        return [*([] if self.weights is None else [self.weights]), *map(Path, store.FOLDERS), store.cache_folder()]

    def find(self, name: str) -> Path | None:
        """The file called `name` in the first folder that has it."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def may_download(self, metrics: Sequence[str]) -> bool:
        """Whether absent files of a model that computes `metrics` may be downloaded."""
        return not self.offline and any(name in self.requested_metrics for name in metrics)


FindModel = Callable[[ModelSearch, tuple[str, ...]], PretrainedSource | str]
"""Finds the model that computes some metrics: its source, or the reason why there is none."""
