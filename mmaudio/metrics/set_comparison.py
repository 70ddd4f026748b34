"""Metrics of whole sets of sounds, base against adapted: KAD, Frechet distance, inception score.

A set has one value, so its interval cannot be Student's over the videos' means. It is the jackknife's: the value is
taken again without each video in turn (without each of at most `MOST_GROUPS` groups of videos), and how much those
values differ says how sure it is.

n sounds, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import stats

from mmaudio.metrics.distribution import Array, Kernels, frechet_distance, inception_score, too_few_for_fd
from mmaudio.metrics.registry import ADAPTED, BASE, CODEC, METRICS, ORIGINAL
from mmaudio.metrics.statistics import LEVEL, Comparison, verdict

FEATURES, CLASSES = "features", "classes"
"""What a judge keeps of each sound for these metrics."""
MOST_GROUPS = 20
SOUNDS = (ORIGINAL, CODEC, BASE, ADAPTED)

Mask = npt.NDArray[np.bool_]
Statistic = Callable[[Mask], float]
"""A value from the clips that are left in."""


@dataclass
class Collected:
    """What was kept of each clip's sounds: rows (takes, D) by sound and kind."""

    rows: dict[str, dict[str, list[npt.NDArray[np.float32]]]] = field(default_factory=dict)

    def add(self, rows: Mapping[str, Mapping[str, npt.NDArray[np.float32]]]) -> None:
        """Keep one clip's rows, those of the four sounds."""
        for sound in SOUNDS:
            for kind, values in rows.get(sound, {}).items():
                self.rows.setdefault(sound, {}).setdefault(kind, []).append(values)

    def get(self, sound: str, kind: str) -> Rows:
        """All rows of a sound."""
        parts = self.rows[sound][kind]
        clips = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return Rows(np.concatenate(parts).astype(np.float64), clips)


@dataclass(frozen=True)
class Rows:
    """Rows (n, D) and the number of each one's clip (n,)."""

    values: Array
    clips: npt.NDArray[np.intp]


def compare_sets(
    collected: Collected, videos: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, Comparison], dict[str, str]]:
    """The set metrics among `names`, and why others have no value; `videos` names each clip's source."""
    found: dict[str, Comparison] = {}
    dimension = collected.rows[BASE][FEATURES][0].shape[1] if collected.rows else 0
    few = too_few_for_fd(len(videos), dimension)
    reasons = {"fd": few} if few else {}
    for name in ("kad", "fd", "isc") if collected.rows else ():
        if name not in names or name in reasons:
            continue
        result = _compare(name, _statistics(name, collected), videos)
        if result is None:
            reasons[name] = "needs two clips or more whose originals differ"
        else:
            found[name] = result
    return found, reasons


def _statistics(name: str, collected: Collected) -> dict[str, Statistic]:
    """The metric of each sound as a function of the clips that are left in."""
    if name == "isc":
        return {sound: _score(collected.get(sound, CLASSES)) for sound in SOUNDS}
    reference = collected.get(ORIGINAL, FEATURES)
    make = {"kad": _kad, "fd": _frechet}[name]
    return {sound: make(collected.get(sound, FEATURES), reference) for sound in (CODEC, BASE, ADAPTED)}


def _kad(rows: Rows, reference: Rows) -> Statistic:
    kernels = Kernels(rows.values, reference.values, rows.clips)
    return lambda kept: kernels.kad(kept[rows.clips], kept[reference.clips])


def _frechet(rows: Rows, reference: Rows) -> Statistic:
    return lambda kept: frechet_distance(rows.values[kept[rows.clips]], reference.values[kept[reference.clips]])


def _score(rows: Rows) -> Statistic:
    return lambda kept: inception_score(rows.values[kept[rows.clips]])


def _compare(name: str, of: Mapping[str, Statistic], videos: Sequence[str]) -> Comparison | None:
    everything = np.ones(len(videos), np.bool_)
    values = {sound: statistic(everything) for sound, statistic in of.items()}
    if not all(math.isfinite(values[model]) for model in (BASE, ADAPTED)):
        return None
    better, count = METRICS[name].better, len(set(videos))
    interval = None
    if name != "fd":  # its bias grows as clips are left out
        interval = jackknife(lambda kept: of[ADAPTED](kept) - of[BASE](kept), videos)
    return Comparison(
        base=values[BASE],
        adapted=values[ADAPTED],
        difference=values[ADAPTED] - values[BASE],
        interval=interval,
        better=better,
        verdict=verdict(interval, count, better),
        clips=len(videos),
        videos=count,
        share_better=None,
        original=values.get(ORIGINAL),
        codec=values[CODEC] if math.isfinite(values[CODEC]) else None,
    )


def jackknife(statistic: Statistic, videos: Sequence[str], level: float = LEVEL) -> tuple[float, float] | None:
    """An interval of a statistic of all clips, from leaving out the clips of one group of videos after the other.

    None below three groups (two left in are the fewest that can be compared), or where a part has no value. Groups may
    differ in size. Source: Busing, Meijer and van der Leeden, Delete-m jackknife for unequal m, Statistics and
    Computing 9, 1999; Student's t with as many degrees of freedom as there are groups less one.
    """
    names = list(dict.fromkeys(videos))
    groups = min(len(names), MOST_GROUPS)
    if groups < 3:
        return None
    number = {video: index % groups for index, video in enumerate(names)}
    group = np.array([number[video] for video in videos])
    whole = statistic(np.ones(len(videos), np.bool_))
    without = np.array([statistic(group != index) for index in range(groups)])
    share = len(videos) / np.bincount(group, minlength=groups)
    pseudo = share * whole - (share - 1) * without
    centre = groups * whole - ((1 - 1 / share) * without).sum()
    deviation = math.sqrt(((pseudo - centre) ** 2 / (share - 1)).mean())
    half = float(stats.t.ppf((1 + level) / 2, groups - 1)) * deviation
    return (whole - half, whole + half) if math.isfinite(half) else None
