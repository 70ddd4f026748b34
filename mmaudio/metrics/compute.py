"""Values of the metrics in the registry that are computed from audio alone, for one sound of one clip."""

from __future__ import annotations

import math
from collections.abc import Collection

from mmaudio.metrics.metric_inputs import MetricInputs
from mmaudio.metrics.registry import METRICS


def compute_metrics(inputs: MetricInputs, names: Collection[str]) -> dict[str, float]:
    """Compute those of the metrics `names` that need audio alone: means over the samples that have a value, else NaN.

    The others have their values from elsewhere: pretrained models, whole sets, and the network for the velocity loss.
    """
    values: dict[str, float] = {}
    for name, metric in METRICS.items():
        if name in names and metric.compute is not None:
            per_sample = [value for value in map(float, metric.compute(inputs)) if not math.isnan(value)]
            values[name] = math.fsum(per_sample) / len(per_sample) if per_sample else math.nan
        if name in names and metric.compare_samples is not None:
            values[name] = metric.compare_samples(inputs)
    return values
