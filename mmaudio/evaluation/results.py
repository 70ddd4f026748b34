"""Results of an evaluation: measurements of each clip, comparisons over all clips of a set."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from mmaudio.data.clips import Clip
from mmaudio.metrics.metric_inputs import ADAPTED, BASE, CODEC, ORIGINAL
from mmaudio.metrics.registry import METRICS
from mmaudio.metrics.statistics import Comparison, compare, fold_variance_factor, mean_by_video


@dataclass
class ClipMeasurement:
    """Measurements of one sound of a clip, original or generated."""

    values: dict[str, float] = field(default_factory=dict)
    """By metric; means over the samples."""
    onsets: list[float] = field(default_factory=list)
    """Seconds from the clip's start; of the first sample."""


@dataclass
class ClipMedia:
    """What a report plays and shows of a clip; a sound's first sample."""

    files: dict[str, str] = field(default_factory=dict)
    """Paths relative to the report: `video` and one per sound."""
    mel_images: dict[str, str] = field(default_factory=dict)
    """Mel spectrograms by sound, data URIs."""
    poster: str = ""
    """The first frame, a data URI."""


@dataclass
class ClipResult:
    """One clip: measurements by the name of the sound (original, codec, base, adapted), and the report's media."""

    clip: Clip
    measurements: dict[str, ClipMeasurement]
    strengths: dict[float, ClipMeasurement] = field(default_factory=dict)
    """Measurements of the adapter at other strengths than 1, where they were tried on this clip."""
    trained: bool = False
    """Whether its source video was trained on; only `--include-training` allows such a clip."""
    media: ClipMedia = field(default_factory=ClipMedia)

    def value(self, sound: str, metric: str) -> float:
        """One metric of one sound, NaN where there is no value."""
        return self.measurements[sound].values.get(metric, math.nan) if sound in self.measurements else math.nan


@dataclass
class Results:
    """Results on one set of clips."""

    clips: list[ClipResult]
    set_comparisons: dict[str, Comparison] = field(default_factory=dict)
    """Metrics of the whole set of sounds (KAD, FD, ISC), by name."""
    strengths: dict[float, dict[str, Comparison]] = field(default_factory=dict)
    """Base against the adapter at each strength tried (0: the base, 1: as trained), by metric; empty: none tried.

    Of the general clips: what each strength forgets."""
    recommended: float | None = None
    """The strength to use (`strength_sweep.recommend`); None where none is clearly better than the base."""
    recommendation: str = ""
    """That rule's outcome in a sentence."""
    not_computed: dict[str, str] = field(default_factory=dict)
    """Metrics without a value, with the reasons."""
    num_folds: int = 0
    """Folds that the clips are pooled from, each with an adapter of its own; 0: one adapter."""

    @property
    def videos(self) -> list[str]:
        """Source video of each clip."""
        return [result.clip.video for result in self.clips]

    @property
    def num_videos(self) -> int:
        """Number of source videos."""
        return len(set(self.videos))

    @property
    def num_trained(self) -> int:
        """Number of clips whose source videos were trained on."""
        return sum(result.trained for result in self.clips)

    def values(self, sound: str, metric: str) -> list[float]:
        """One metric of one sound by clip, NaN where there is no value."""
        return [result.value(sound, metric) for result in self.clips]

    def has_values(self, metric: str) -> bool:
        """Whether any clip has a value of the metric for the output of a model."""
        return any(not math.isnan(value) for model in (BASE, ADAPTED) for value in self.values(model, metric))

    def comparisons(self) -> dict[str, Comparison]:
        """Base against adapted by every metric that has a value on at least one clip, in the report's order."""
        comparisons = {}
        for name, metric in METRICS.items():
            if name in self.set_comparisons:
                comparisons[name] = self.set_comparisons[name]
                continue
            base, adapted = (self.values(model, name) for model in (BASE, ADAPTED))
            factor = fold_variance_factor(self.num_folds)
            comparison = compare(base, adapted, self.videos, metric.better, factor)
            if comparison is not None:
                original, codec = (mean_by_video(self.values(sound, name), self.videos) for sound in (ORIGINAL, CODEC))
                comparisons[name] = replace(comparison, original=original, codec=codec)
        return comparisons
