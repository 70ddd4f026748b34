"""By how much a clip's sound comes before or after its picture, from onsets and sudden motion. No models.

Motion that changes suddenly is when things hit, start or stop: what tends to be heard. Its envelope is correlated with
the onsets' at every shift; what chance alone would give is seen from sounds put to the pictures of other videos.

T picture frames.
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

SIDE, CELL = 48, 4
"""Pixels of the small picture, and of a cell of it, in which motion is seen on its own."""
LONGEST = 2.0
"""Seconds to both sides within which the shift is looked for."""
TOGETHER = 0.16
"""Seconds up to which sound and picture count as together: a frame's and an analysis window's doubt."""
NOTICEABLE = 0.25
"""Seconds below which no shift is reported."""
CHANCE = 0.99
"""Quantile of wrong pairs above which a shift is more than chance."""
MOST_PAIRS = 20
"""Wrong pairs that each clip is in."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Envelopes:
    """One clip: how suddenly things move and how sounds start, both (T,) at `FPS`."""

    video: str
    motion: Array
    onsets: Array


@dataclass(frozen=True)
class Shift:
    """What sound and picture of a clip say of each other."""

    seconds: float | None
    """By how much the sound is late (early where negative); None where it is not told from chance."""
    together: bool
    """Whether they clearly agree without a shift."""
    by_video: bool = False
    """True: only all clips of the video together told it."""


def motion_envelope(frames: Tensor) -> Array:
    """How suddenly motion changes: grey frames (T, SIDE, SIDE) at `FPS` -> (T,), 0 at both ends.

    The size of each pixel's second difference over time, mean by cell, without what a cell has at most times (noise,
    turning wheels), mean over the cells.
    """
    sudden = (frames[2:] - 2 * frames[1:-1] + frames[:-2]).abs()
    cells = reduce(sudden.double(), "t (y h) (x w) -> t (y x)", "mean", h=CELL, w=CELL)
    above = (cells - cells.median(0).values).clamp(min=0).mean(1)
    return np.pad(above.numpy(), 1)


def at_frames(envelope: Tensor, frame_seconds: float, count: int) -> Array:
    """An onset envelope (mel frames,) -> (`count`,) at `FPS`: the highest of each picture frame's time."""
    frame = ((np.arange(len(envelope)) + 0.5) * frame_seconds * FPS).astype(int)
    out = np.zeros(count)
    inside = frame < count
    np.maximum.at(out, frame[inside], envelope.double().cpu().numpy()[inside])
    return out


def correlation(onsets: Array, motion: Array) -> Array:
    """Correlation of two envelopes (T,) at every shift of the sound, from -LONGEST to +LONGEST (late), (2 L + 1,).

    Of their square roots, smoothed by a frame; zero where one of them is constant.
    """
    longest = min(round(LONGEST * FPS), len(motion) - 1)
    sound, seen = (_prepared(part) for part in (onsets, motion))
    whole = np.correlate(sound, seen, "full")
    middle = len(seen) - 1
    return whole[middle - longest : middle + longest + 1]


def shifts(clips: Sequence[Envelopes]) -> list[Shift]:
    """By how much each clip's sound is shifted, from the clip alone or from all clips of its video together.

    Told where the best correlation, and what it gains over the best without a shift, are both above `CHANCE` of those
    of wrong pairs. Clips of one video alone have no wrong pairs: nothing is told.
    """
    own = [correlation(clip.onsets, clip.motion) for clip in clips]
    chance = _Chance([correlation(a.onsets, b.motion) for a, b in wrong_pairs(clips)])
    rows: dict[str, list[int]] = {}
    for row, clip in enumerate(clips):
        rows.setdefault(clip.video, []).append(row)
    pooled = {video: _pooled([own[row] for row in mine]) for video, mine in rows.items()}
    by_video = _Chance(list(_wrong_videos(clips, rows)))
    told = {video: by_video.shift(values) for video, values in pooled.items()}
    return [_joined(chance.shift(values), told[clip.video], values) for clip, values in zip(clips, own, strict=True)]


def wrong_pairs(clips: Sequence[Envelopes]) -> Iterator[tuple[Envelopes, Envelopes]]:
    """Sounds with pictures of other videos: each clip's with up to `MOST_PAIRS`, the same ones every time."""
    generator = np.random.default_rng(0)
    for clip in clips:
        others = [other for other in clips if other.video != clip.video and len(other.motion) == len(clip.motion)]
        for index in generator.permutation(len(others))[:MOST_PAIRS]:
            yield clip, others[index]


def _wrong_videos(clips: Sequence[Envelopes], rows: dict[str, list[int]]) -> Iterator[Array]:
    """The pooled correlations of one video's sounds with another's pictures."""
    generator, names = np.random.default_rng(0), list(rows)
    for video in names:
        others = [other for other in names if other != video]
        for index in generator.permutation(len(others))[:MOST_PAIRS]:
            pairs = [(clips[a], clips[b]) for a, b in zip(rows[video], rows[others[index]], strict=False)]
            whole = [correlation(a.onsets, b.motion) for a, b in pairs if len(a.motion) == len(b.motion)]
            if whole:
                yield _pooled(whole)


class _Chance:
    """What correlations of wrong pairs come to: how high they get, and how much a shift gains."""

    def __init__(self, wrong: Sequence[Array]) -> None:
        self.known = bool(wrong)
        if self.known:
            found = np.array([_best(values) for values in wrong])
            self.height, self.gain = np.quantile(found[:, :2], CHANCE, axis=0)
            self.agreed = float(np.quantile(found[:, 3], CHANCE))

    def shift(self, values: Array) -> Shift:
        """What a right pair's correlations say beyond that."""
        if not self.known:
            return Shift(None, together=False)
        height, gain, seconds, agreed = _best(values)
        told = height > self.height and gain > self.gain and abs(seconds) >= NOTICEABLE
        return Shift(seconds if told else None, together=not told and agreed > self.agreed)


def _best(values: Array) -> tuple[float, float, float, float]:
    """The highest correlation, its gain over the best without a shift, its shift in seconds, and that best."""
    longest, near = len(values) // 2, round(TOGETHER * FPS)
    best = int(values.argmax())
    agreed = float(values[longest - near : longest + near + 1].max())
    return float(values[best]), float(values[best]) - agreed, (best - longest) / FPS, agreed


def _joined(own: Shift, video: Shift, values: Array) -> Shift:
    """A clip's own shift where it is told, else its video's where the clip does not speak against it."""
    if own.seconds is not None or own.together or video.seconds is None:
        return own if own.seconds is not None or own.together else Shift(None, video.together, by_video=True)
    longest, at = len(values) // 2, len(values) // 2 + round(video.seconds * FPS)
    near = round(TOGETHER * FPS)
    agrees = values[max(0, at - near) : at + near + 1].max() > values[longest - near : longest + near + 1].max()
    return Shift(video.seconds, together=False, by_video=True) if agrees else own


def _pooled(rows: Sequence[Array]) -> Array:
    """Correlations of several clips as one: their sum has the spread of a single one's after this division."""
    total: Array = np.sum(rows, axis=0) / math.sqrt(len(rows))
    return total


def _prepared(envelope: Array) -> Array:
    kernel = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    smooth = np.convolve(np.sqrt(envelope), kernel / kernel.sum(), "same")
    centred: Array = smooth - smooth.mean()
    size = float(np.linalg.norm(centred))
    return centred / size if size > 1e-9 else np.zeros_like(centred)
