"""Time offset of a clip's sound from its video, from onsets and sudden motion. No models.

Motion that changes suddenly is when things hit, start or stop, which tends to be audible. Its envelope is correlated
with the onset envelope at every offset; the correlations that chance alone gives come from sounds paired with the
videos of other files.

T video frames, L offsets to one side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from einops import reduce
from torch import Tensor

from mmaudio.model.spec import SYNC_FPS as FPS

FRAME_SIZE, CELL_SIZE = 48, 4
"""Pixels of the small frame, and of a cell of it, in which motion is measured on its own."""
MAX_OFFSET = 2.0
"""Seconds to both sides within which the offset is searched."""
IN_SYNC_SECONDS = 0.16
"""Seconds up to which sound and video count as in sync: the uncertainty of a frame and of an analysis window."""
MIN_OFFSET = 0.25
"""Seconds below which no offset is reported."""
SIGNIFICANCE_QUANTILE = 0.99
"""Quantile of mismatched pairs above which an offset is more than chance."""
MAX_MISMATCHED = 20
"""Mismatched pairs per clip."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClipEnvelopes:
    """Envelopes of one clip's sudden motion and of its onsets, both (T,) at `FPS`."""

    video: str
    motion: Array
    onsets: Array


@dataclass(frozen=True)
class OffsetEstimate:
    """Estimated offset of a clip's sound from its video."""

    seconds: float | None
    """Positive where the sound is late, negative where it is early; None where it is no more than chance."""
    in_sync: bool
    """Whether sound and video clearly agree without an offset."""
    by_video: bool = False
    """Whether the estimate needed all clips of the video together."""


def motion_envelope(frames: Tensor) -> Array:
    """Sudden changes of motion: grey frames (T, FRAME_SIZE, FRAME_SIZE) at `FPS` -> (T,), 0 at both ends.

    The size of each pixel's second difference over time, mean by cell, minus the cell's median over time (noise,
    turning wheels), mean over the cells.
    """
    second_difference = (frames[2:] - 2 * frames[1:-1] + frames[:-2]).abs()
    cells = reduce(second_difference.double(), "t (y h) (x w) -> t (y x)", "mean", h=CELL_SIZE, w=CELL_SIZE)
    envelope = (cells - cells.median(0).values).clamp(min=0).mean(1)
    return np.pad(envelope.numpy(), 1)


def envelope_at_frames(envelope: Tensor, frame_seconds: float, num_frames: int) -> Array:
    """Resample an onset envelope (mel frames,) to (`num_frames`,) at `FPS`: the maximum within each video frame."""
    frame_indices = ((np.arange(len(envelope)) + 0.5) * frame_seconds * FPS).astype(int)
    resampled = np.zeros(num_frames)
    inside = frame_indices < num_frames
    np.maximum.at(resampled, frame_indices[inside], envelope.double().cpu().numpy()[inside])
    return resampled


def cross_correlation(onsets: Array, motion: Array) -> Array:
    """Correlation of two envelopes (T,) at every offset of the sound, -MAX_OFFSET to +MAX_OFFSET (late), (2 L + 1,).

    Of their square roots, smoothed by a frame; zero where one of them is constant.
    """
    max_lag = min(round(MAX_OFFSET * FPS), len(motion) - 1)
    onsets, motion = _smooth_and_normalize(onsets), _smooth_and_normalize(motion)
    correlations = np.correlate(onsets, motion, "full")
    center = len(motion) - 1
    return correlations[center - max_lag : center + max_lag + 1]


def estimate_offsets(clips: Sequence[ClipEnvelopes]) -> list[OffsetEstimate]:
    """Estimate the offset of each clip's sound, from the clip alone or from all clips of its video together.

    An offset is reported where the best correlation, and its gain over the best in sync, are both above the
    `SIGNIFICANCE_QUANTILE` of mismatched pairs. Clips of a single video have no mismatched pairs, and no estimate.
    """
    correlations = [cross_correlation(clip.onsets, clip.motion) for clip in clips]
    chance = _ChanceLevel([cross_correlation(a.onsets, b.motion) for a, b in mismatched_pairs(clips)])
    rows_by_video: dict[str, list[int]] = {}
    for row, clip in enumerate(clips):
        rows_by_video.setdefault(clip.video, []).append(row)
    pooled = {video: _pool([correlations[row] for row in rows]) for video, rows in rows_by_video.items()}
    chance_by_video = _ChanceLevel(list(_mismatched_videos(clips, rows_by_video)))
    video_estimates = {video: chance_by_video.estimate(values) for video, values in pooled.items()}
    return [
        _combine(chance.estimate(values), video_estimates[clip.video], values)
        for clip, values in zip(clips, correlations, strict=True)
    ]


def mismatched_pairs(clips: Sequence[ClipEnvelopes]) -> Iterator[tuple[ClipEnvelopes, ClipEnvelopes]]:
    """Pair each clip's sound with up to `MAX_MISMATCHED` clips of other videos, the same ones every time."""
    generator = np.random.default_rng(0)
    for clip in clips:
        candidates = [other for other in clips if other.video != clip.video and len(other.motion) == len(clip.motion)]
        for index in generator.permutation(len(candidates))[:MAX_MISMATCHED]:
            yield clip, candidates[index]


def _mismatched_videos(clips: Sequence[ClipEnvelopes], rows_by_video: dict[str, list[int]]) -> Iterator[Array]:
    """The pooled correlations of one video's sounds with another's frames."""
    generator, videos = np.random.default_rng(0), list(rows_by_video)
    for video in videos:
        candidates = [other for other in videos if other != video]
        for index in generator.permutation(len(candidates))[:MAX_MISMATCHED]:
            rows = zip(rows_by_video[video], rows_by_video[candidates[index]], strict=False)
            pairs = [(clips[a], clips[b]) for a, b in rows]
            correlations = [cross_correlation(a.onsets, b.motion) for a, b in pairs if len(a.motion) == len(b.motion)]
            if correlations:
                yield _pool(correlations)


class _ChanceLevel:
    """Quantiles of the correlations of mismatched pairs: the best one, its gain, and the best in sync."""

    def __init__(self, mismatched: Sequence[Array]) -> None:
        self.has_pairs = bool(mismatched)
        if self.has_pairs:
            peaks = np.array([_find_peak(values) for values in mismatched])
            self.height, self.gain = np.quantile(peaks[:, :2], SIGNIFICANCE_QUANTILE, axis=0)
            self.in_sync = float(np.quantile(peaks[:, 3], SIGNIFICANCE_QUANTILE))

    def estimate(self, correlations: Array) -> OffsetEstimate:
        """Estimate the offset from a matching pair's correlations (2 L + 1,)."""
        if not self.has_pairs:
            return OffsetEstimate(None, in_sync=False)
        height, gain, seconds, in_sync = _find_peak(correlations)
        significant = height > self.height and gain > self.gain and abs(seconds) >= MIN_OFFSET
        return OffsetEstimate(seconds if significant else None, in_sync=not significant and in_sync > self.in_sync)


def _find_peak(correlations: Array) -> tuple[float, float, float, float]:
    """The highest correlation, its gain over the highest in sync, its offset in seconds, and the highest in sync."""
    center, tolerance = len(correlations) // 2, round(IN_SYNC_SECONDS * FPS)
    best = int(correlations.argmax())
    in_sync = float(correlations[center - tolerance : center + tolerance + 1].max())
    return float(correlations[best]), float(correlations[best]) - in_sync, (best - center) / FPS, in_sync


def _combine(clip: OffsetEstimate, video: OffsetEstimate, correlations: Array) -> OffsetEstimate:
    """The clip's own estimate where there is one, else its video's where the clip's correlations do not contradict."""
    if clip.seconds is not None or clip.in_sync:
        return clip
    if video.seconds is None:
        return OffsetEstimate(None, video.in_sync, by_video=True)
    center, tolerance = len(correlations) // 2, round(IN_SYNC_SECONDS * FPS)
    lag = center + round(video.seconds * FPS)
    near_lag = correlations[max(0, lag - tolerance) : lag + tolerance + 1].max()
    agrees = near_lag > correlations[center - tolerance : center + tolerance + 1].max()
    return OffsetEstimate(video.seconds, in_sync=False, by_video=True) if agrees else clip


def _pool(rows: Sequence[Array]) -> Array:
    """Correlations of several clips as one, scaled so that their sum has the spread of a single clip's."""
    pooled: Array = np.sum(rows, axis=0) / math.sqrt(len(rows))
    return pooled


def _smooth_and_normalize(envelope: Array) -> Array:
    """The square root of an envelope (T,), smoothed, with zero mean and unit norm; zeros where it is constant."""
    kernel = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    smooth = np.convolve(np.sqrt(envelope), kernel / kernel.sum(), "same")
    centered: Array = smooth - smooth.mean()
    norm = float(np.linalg.norm(centered))
    return centered / norm if norm > 1e-9 else np.zeros_like(centered)
