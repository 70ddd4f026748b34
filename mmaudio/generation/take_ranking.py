"""Ranking of several takes of one piece of audio by a metric that needs no original.

    ranking = plan_ranking("motion", ModelSearch(model))      # before any work
    scores = TakeScorer(ranking, sampler.spec, encoders).score(request, seconds, waveforms)   # one per take
    ranked = rank_takes(scores, ranking)

Takes are ranked as a whole: the score is the mean over the windows of 8 s that the audio was generated in. The windows
of a take agree on the audio before it exists, so the best windows of several takes would not fit together.

S takes, T samples of audio.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmaudio.errors import ConfigError, DataError, WeightsError
from mmaudio.features.encoders import Encoders
from mmaudio.features.mel import build_mel
from mmaudio.generation.generate import GenerationRequest
from mmaudio.generation.windows import WindowGrid, plan_windows
from mmaudio.media.frame_windows import read_frame_windows
from mmaudio.media.video import probe
from mmaudio.metrics.metric_inputs import ClipAudio
from mmaudio.metrics.motion_agreement import motion_agreement, read_motion
from mmaudio.metrics.onsets import onset_f1, onset_times
from mmaudio.metrics.pretrained_metrics import ModelSearch, PretrainedSource
from mmaudio.metrics.registry import HIGHER, METRICS
from mmaudio.model.spec import CLIP_SECONDS, ModelSpec, lookup
from mmaudio.utils.escapes import encode_cell
from mmaudio.utils.files import atomic_write

MOTION = "motion"
"""The F1 of onsets against sudden motion in the picture: computed without a model."""
CONSENSUS = "consensus"
"""The mean F1 of a take's onsets against those of every other take: computed without a model, for texts, too."""
DESYNC, CLAP = "desync", "clap"
RANKINGS = (
    CONSENSUS,
    MOTION,
    *(name for name, metric in METRICS.items() if metric.reference_free and metric.find_model and not metric.of_set),
)
"""Names of the metrics that takes can be ranked by."""


@dataclass(frozen=True)
class Ranking:
    """A metric to rank takes by."""

    metric: str
    source: PretrainedSource | None = None
    """The metric's pretrained model, not loaded yet."""

    @property
    def sign(self) -> int:
        """1 where a higher score is better, else -1."""
        return 1 if self.metric not in METRICS or METRICS[self.metric].better == HIGHER else -1


@dataclass(frozen=True)
class Take:
    """One of several takes and its score."""

    index: int
    """From 0 on: its seed is that of the request plus this."""
    score: float
    """NaN where the metric has no value."""


def plan_ranking(metric: str, search: ModelSearch) -> Ranking:
    """Find what the metric needs, without loading it; ConfigError for an unknown one, WeightsError without weights."""
    find_model = lookup(
        {name: METRICS[name].find_model if name in METRICS else None for name in RANKINGS}, metric, "rank-by"
    )
    if find_model is None:
        return Ranking(metric)
    source = find_model(search, (metric,))
    if isinstance(source, str):
        reason = source.replace("--metrics ", "--rank-by ")
        raise WeightsError(f"--rank-by {metric}: {reason}; --rank-by {CONSENSUS} needs none")
    return Ranking(metric, source)


def check_rankable(metric: str, request: GenerationRequest, seconds: float | None = None) -> None:
    """Raise where a request has not what the metric compares with: ConfigError without a video, else DataError."""
    if metric in (MOTION, DESYNC) and request.video is None:
        raise ConfigError(f"--rank-by {metric}: it compares with the picture, and there is no video; {CLAP} does not")
    name = request.video.name if request.video is not None else "the text"
    if metric == CLAP and not (request.prompt or request.prompts):
        raise DataError(f"{name}: no prompt, which --rank-by {CLAP} compares with; give one, or take {MOTION}")
    if metric == DESYNC and seconds is not None and seconds < CLIP_SECONDS:
        raise DataError(f"{name}: {seconds:g} s, and --rank-by {DESYNC} needs {CLIP_SECONDS:g}; take {MOTION}")


@dataclass(frozen=True)
class RankedTakes:
    """All takes of one piece of audio, the best first."""

    metric: str
    takes: Sequence[Take]

    def describe(self, place: int) -> dict[str, object]:
        """What a file says of its take, the one at `place` from 0 on."""
        take = self.takes[place]
        score = None if math.isnan(take.score) else round(take.score, 6)
        return {"metric": self.metric, "score": score, "rank": place + 1, "of": len(self.takes)}

    def lines(self, name: str, seed: int) -> list[str]:
        """Lines for the terminal: the scores by seed, and a note where they do not tell the takes apart."""
        scores = ", ".join(f"{take.score:.3f} (seed {seed + take.index})" for take in self.takes)
        lines = [f"{name}: {self.metric} {scores}"]
        if len({take.score for take in self.takes if not math.isnan(take.score)}) < 2:
            reason = "the picture has no sudden motion" if self.metric == MOTION else "all have the same score, or none"
            lines.append(f"note: {name}: its takes are not told apart by {self.metric} ({reason}); the first are taken")
        return lines


def rank_takes(scores: Sequence[float], ranking: Ranking) -> RankedTakes:
    """Rank takes by their scores: of equal ones the first seed comes first, and those without a score come last."""
    keys = [math.inf if math.isnan(score) else -ranking.sign * score for score in scores]
    order = sorted(range(len(scores)), key=lambda index: (keys[index], index))
    return RankedTakes(ranking.metric, [Take(index, scores[index]) for index in order])


def write_takes(path: Path, ranked: RankedTakes, seed: int, files: Sequence[str]) -> None:
    """Write a table of all takes: rank, seed, score, and the file of those that are kept."""
    rows = [("rank", "seed", ranked.metric, "file")]
    for place, take in enumerate(ranked.takes):
        score = "" if math.isnan(take.score) else f"{take.score:.6g}"
        rows.append(
            (str(place + 1), str(seed + take.index), score, encode_cell(files[place]) if place < len(files) else "")
        )
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)


class TakeScorer:
    """Scores takes by the metric of a ranking, with its pretrained model loaded once."""

    def __init__(self, ranking: Ranking, spec: ModelSpec, encoders: Encoders) -> None:
        self.ranking, self.spec, self.encoders = ranking, spec, encoders
        self.model = None if ranking.source is None else ranking.source.load()
        self.to_mel = build_mel(spec.codec.name)

    def score(self, request: GenerationRequest, seconds: float, waveforms: Tensor) -> list[float]:
        """One score for each of the waveforms (S, T), which follow `request`: the mean over the windows."""
        grid = plan_windows(self.spec.codec, seconds)
        scorers = {CONSENSUS: self._score_consensus, MOTION: self._score_motion}
        score = scorers.get(self.ranking.metric, self._score_by_model)
        scores = np.array(list(score(request, grid, waveforms)))  # (windows, S)
        means = [column[np.isfinite(column)].mean() if np.isfinite(column).any() else math.nan for column in scores.T]
        return [float(mean) for mean in means]

    def _cut(self, waveforms: Tensor, start: float, grid: WindowGrid) -> Tensor:
        rate = self.spec.codec.sample_rate
        first = round(start * rate)
        return waveforms[:, first : first + round(grid.window_seconds * rate)]

    @torch.inference_mode()
    def _score_consensus(self, _: GenerationRequest, grid: WindowGrid, waveforms: Tensor) -> Iterator[list[float]]:
        for start in grid.start_times:
            times = onset_times(self.to_mel(self._cut(waveforms, start, grid)), self.spec.codec)
            agreement = np.array([[onset_f1(take, other) for other in times] for take in times])
            others = ~np.eye(len(times), dtype=bool)
            yield [
                float(agreement[row, others[row]].mean()) if len(times) > 1 else math.nan for row in range(len(times))
            ]

    @torch.inference_mode()
    def _score_motion(self, request: GenerationRequest, grid: WindowGrid, waveforms: Tensor) -> Iterator[list[float]]:
        assert request.video is not None
        starts = [request.start + time for time in grid.start_times]
        motions = read_motion(request.video, starts, grid.window_seconds, request.streams)
        for start, motion in zip(grid.start_times, motions, strict=True):
            yield motion_agreement(self.to_mel(self._cut(waveforms, start, grid)), motion, self.spec.codec)

    @torch.inference_mode()
    def _score_by_model(self, request: GenerationRequest, grid: WindowGrid, waveforms: Tensor) -> Iterator[list[float]]:
        assert self.model is not None
        features = self._sync_features(request, grid)
        for start, sync_features in zip(grid.start_times, features, strict=True):
            takes = {str(index): take[None] for index, take in enumerate(self._cut(waveforms, start, grid))}
            caption = prompt_at(request, start + grid.window_seconds / 2)
            clip = ClipAudio(takes, self.spec.codec.sample_rate, sync_features, caption)
            values = self.model.score(clip).values
            yield [values[name][self.ranking.metric] for name in takes]

    def _sync_features(self, request: GenerationRequest, grid: WindowGrid) -> Iterator[Tensor]:
        """Synchformer's features (tokens, width) of each window; empty where the metric does not need them."""
        if self.ranking.metric != DESYNC or request.video is None:
            yield from [torch.zeros(0)] * len(grid.start_times)
            return
        sync_grid = self.encoders.frame_grids(grid.window_seconds)[1]
        starts = [request.start + start for start in grid.start_times]
        for window in read_frame_windows(probe(request.video), starts, [sync_grid]):
            yield self.encoders.encode_sync_frames(torch.stack(window.frames[0]))


def prompt_at(request: GenerationRequest, seconds: float) -> str:
    """The prompt that holds at a time of the audio."""
    texts = [prompt.text for prompt in request.prompts if prompt.start <= seconds]
    return texts[-1] if texts else request.prompt
