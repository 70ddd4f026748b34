"""Search for the pretrained models of the selected metrics, and their loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmaudio.errors import MMAudioError
from mmaudio.metrics.pretrained_metrics import FindModel, ModelSearch, PretrainedMetric, PretrainedSource
from mmaudio.metrics.registry import METRICS


@dataclass(frozen=True)
class PretrainedSources:
    """The pretrained models whose files are on disk, and the reasons for those that are missing."""

    available: Sequence[PretrainedSource] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why a metric has no model, by its name."""

    @property
    def identities(self) -> dict[str, str]:
        """Hashes of the models' files by metric, for a hash of all inputs; metrics without a model are not in it."""
        return {name: source.identity for source in self.available for name in source.metrics}


@dataclass(frozen=True)
class SelectedMetrics:
    """The metrics to compute, with the pretrained models that some of them need."""

    names: Sequence[str]
    pretrained: Sequence[PretrainedMetric] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why a metric cannot be computed, by its name."""


def find_pretrained_metrics(search: ModelSearch, names: Sequence[str]) -> PretrainedSources:
    """Find the models of the metrics `names` without loading them."""
    available: list[PretrainedSource] = []
    missing: dict[str, str] = {}
    for find_model, metrics in _metrics_by_model().items():
        if not set(metrics) & set(names):
            continue
        source = find_model(search, metrics)
        if isinstance(source, str):
            missing |= dict.fromkeys(metrics, source)
        else:
            available.append(source)
    return PretrainedSources(available, missing)


def load_metric_models(sources: PretrainedSources, names: Sequence[str]) -> SelectedMetrics:
    """Load all models; the metrics of a file that cannot be read are missing, with the error as the reason."""
    models: list[PretrainedMetric] = []
    missing = dict(sources.missing)
    for source in sources.available:
        try:
            models.append(source.load())
        except MMAudioError as error:
            missing |= dict.fromkeys(source.metrics, str(error))
    return SelectedMetrics(tuple(names), models, missing)


def _metrics_by_model() -> dict[FindModel, tuple[str, ...]]:
    """The metrics that each pretrained model computes, by the function that finds it."""
    names: dict[FindModel, tuple[str, ...]] = {}
    for name, metric in METRICS.items():
        if metric.find_model is not None:
            names[metric.find_model] = (*names.get(metric.find_model, ()), name)
    return names
