"""The sound of many windows in one decoding pass, in memory that the windows bound and not the video.

What a window gets is what resampling the whole file at once would give it: the resampler's kernel is finite, so that
every piece is resampled with as much of its neighbours as the kernel sees.

Legend: T samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mmaudio.media.audio import PEAK, ROLLOFF, ZEROS, fitted, resampler, sound_pieces, sound_rate
from mmaudio.media.video import VideoInfo


def read_sounds(
    info: VideoInfo, starts: Sequence[float], rate: int, samples: int, peak: float | None = PEAK
) -> Iterator[Tensor]:
    """The sound of the windows that begin at `starts` (ascending, seconds): (samples,) float32 at `rate` Hz each.

    Every window is zero-padded past the file's end and scaled to the peak `peak` (see `audio_window`). Raises
    DataError where there is no sound.
    """
    pieces = resampled(sound_pieces(info), sound_rate(info), rate)
    kept, position = torch.zeros(0), 0  # samples at `rate`, the first of them at `position`
    for start in starts:
        first = round(start * rate)
        while position + len(kept) < first + samples:
            piece = next(pieces, None)
            if piece is None:
                break
            kept = torch.cat([kept, piece])
            passed = min(len(kept), max(0, first - position))
            kept, position = kept[passed:], position + passed
        yield fitted(kept[max(0, first - position) :][:samples], samples, peak)


def resampled(pieces: Iterable[Tensor], rate: int, target: int) -> Iterator[Tensor]:
    """Consecutive pieces (T,) at `rate` Hz -> pieces at `target` Hz; joined, they are the whole resampled at once."""
    if rate == target:
        yield from pieces
        return
    resample = resampler(rate, target)
    common = math.gcd(rate, target)
    period, made = rate // common, target // common  # so many samples become so many
    seen = math.ceil(ZEROS * period / (min(period, made) * ROLLOFF))  # samples that the kernel sees to both sides
    margin = math.ceil(seen / period) + 1  # the same in periods, and one to spare
    waiting, before = torch.zeros(0), 0  # `before` periods at the head of `waiting` are through already
    for piece in pieces:
        waiting = torch.cat([waiting, piece])
        ready = len(waiting) // period - margin
        if (ready - before) * period < rate:
            continue
        yield resample(waiting)[before * made : ready * made]
        passed = max(0, ready - margin)
        waiting, before = waiting[passed * period :], ready - passed
    yield resample(waiting)[before * made :]
