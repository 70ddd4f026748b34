"""Onset detection on mel spectrograms, and agreement of two sounds' onsets. Pure functions; no models.

B batch, M mel bands, T mel frames. Mel values are logarithms in the codec's own base (`CodecSpec.log_base`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from mmaudio.metrics.spectral import LOUD
from mmaudio.model.spec import CodecSpec

TOLERANCE = 0.1
"""Seconds by which two onsets may differ and still be the same event."""
FLUX_LAG = 0.032
"""Seconds between the two frames that the spectral flux compares: half an analysis window at 16 kHz."""
PEAK_RADIUS = 0.048
"""An onset is the highest value of the envelope within this many seconds on both sides."""
MEDIAN_RADIUS = 0.4
"""Seconds on both sides over which the median level of the envelope is taken."""
PEAK_HEIGHT = 0.05
"""How far an onset rises above the median level: mean rise over the mel bands in powers of ten."""
PEAK_SHARE = 0.12
"""An onset also rises above the median level by this share of the clip's highest rise."""
DYNAMIC_RANGE = 2.0
"""Powers of ten below the clip's loudest cell below which the envelope ignores changes."""
MAX_LAG = 1.0
"""Seconds to both sides within which the lag of two envelopes is searched."""

Seconds = npt.NDArray[np.float64]
Times = Sequence[float] | Seconds
"""Seconds in any order."""


def onset_envelope(mel: Tensor, codec: CodecSpec) -> Tensor:
    """Spectral flux of log-mel frames: the mean rise over the bands in powers of ten, (B, M, T) -> (B, T).

    A band's rise is against its highest neighbour `FLUX_LAG` earlier (gliding tones are no onsets), on values floored
    smoothly at the louder of `LOUD` and `DYNAMIC_RANGE` below the clip's loudest cell (noise floors are no onsets).
    Zero where an end of the clip, with its reflect padding, is within an analysis window.
    """
    mel = mel.double() * (math.log(codec.log_base) / math.log(10))
    floor = (mel.amax((1, 2), keepdim=True) - DYNAMIC_RANGE).clamp(min=LOUD)
    mel = torch.log10(10**mel + 10**floor)
    lag = max(1, round(FLUX_LAG * codec.sample_rate / codec.hop_length))
    widest = max_pool1d(mel.transpose(1, 2), kernel_size=3, stride=1, padding=1).transpose(1, 2)
    rise = (mel[:, :, lag:] - widest[:, :, :-lag]).clamp(min=0).mean(1)
    edge = math.ceil(codec.n_fft / 2 / codec.hop_length)  # frames whose windows reach into the reflect padding
    return pad(rise[:, edge : rise.shape[1] - edge], (lag + edge, edge))


def onset_times(mel: Tensor, codec: CodecSpec) -> list[Seconds]:
    """Times in seconds of the onsets of each clip of (B, M, T): peaks of `onset_envelope`."""
    return peak_times(onset_envelope(mel, codec), codec)


def peak_times(envelope: Tensor, codec: CodecSpec) -> list[Seconds]:
    """Times in seconds of the peaks of onset envelopes (B, T).

    Mel frame k stands for sample hop * k + hop / 2: the middle of its window. The flux is highest at the frame whose
    middle is the event.
    """
    seconds = codec.hop_length / codec.sample_rate
    return [(_find_peaks(row, seconds) + 0.5) * seconds for row in envelope.cpu().numpy()]


def _find_peaks(envelope: Seconds, frame_seconds: float) -> Seconds:
    """Indices of the frames of (T,) that are onsets."""
    near, wide = (max(1, round(radius / frame_seconds)) for radius in (PEAK_RADIUS, MEDIAN_RADIUS))
    level = np.median(_sliding_windows(envelope, wide, float(np.median(envelope))), axis=1)
    above = envelope - level
    highest = np.max(_sliding_windows(envelope, near, -np.inf), axis=1)
    threshold = max(PEAK_HEIGHT, PEAK_SHARE * float(above.max(initial=0.0)))
    candidates = np.flatnonzero((envelope >= highest) & (above >= threshold)).astype(np.float64)
    is_first: npt.NDArray[np.bool_] = np.diff(candidates, prepend=-np.inf) > near  # a plateau is one onset
    peaks: Seconds = candidates[is_first]
    return peaks


def _sliding_windows(values: Seconds, radius: int, fill: float) -> Seconds:
    padded = np.pad(values, radius, constant_values=fill)
    windows: Seconds = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1)
    return windows


def onset_f1(times: Times, reference: Times, tolerance: float = TOLERANCE) -> float:
    """F1 of onset times in seconds, each matched to at most one of the other side within `tolerance`; 0 to 1.

    No onsets on either side is full agreement (1), on one side only none (0). Higher is better.
    """
    return f1_score(*precision_and_recall(times, reference, tolerance))


def f1_score(precision: float, recall: float) -> float:
    """Harmonic mean of precision and recall; 0 where both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def precision_and_recall(times: Times, reference: Times, tolerance: float = TOLERANCE) -> tuple[float, float]:
    """The shares of `times` and of `reference` (seconds) that are matched one to one within `tolerance`; 0 to 1.

    No onsets on either side is full agreement (1, 1), on one side only none (0, 0). Higher is better. Source: the
    onset detection task of MIREX, there with a tolerance of 0.05 s.
    """
    if len(times) == 0 and len(reference) == 0:
        return 1.0, 1.0
    if len(times) == 0 or len(reference) == 0:
        return 0.0, 0.0
    count = count_matches(times, reference, tolerance)
    return count / len(times), count / len(reference)


def count_matches(times: Times, reference: Times, tolerance: float = TOLERANCE) -> int:
    """The size of the largest one-to-one matching of times that differ by at most `tolerance` seconds."""
    return len(match_onsets(times, reference, tolerance))


def match_onsets(times: Times, reference: Times, tolerance: float = TOLERANCE) -> list[tuple[float, float]]:
    """A largest one-to-one matching of times that differ by at most `tolerance` seconds: pairs (time, reference)."""
    a, b = sorted(map(float, times)), sorted(map(float, reference))
    i = j = 0
    pairs = []
    while i < len(a) and j < len(b):  # with one tolerance for all, earliest to earliest is a largest matching
        if abs(a[i] - b[j]) <= tolerance + 1e-9:
            pairs.append((a[i], b[j]))
            i, j = i + 1, j + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return pairs


def onset_lag(envelopes: Tensor, reference: Tensor, frame_seconds: float) -> Tensor:
    """Seconds by which envelopes (B, T) come after the reference's (T,), (B,): negative is too early, 0 is best.

    The shift, up to `MAX_LAG`, at which the cross-correlation of the two onset envelopes is highest; of equal ones
    the smallest. NaN where either envelope has no rise at all. Its resolution is a mel frame.
    """
    frames = reference.shape[-1]
    max_lag = min(frames - 1, round(MAX_LAG / frame_seconds))
    n_fft = 2 * frames  # zero-padded: no wrapping around
    spectra = torch.fft.rfft(envelopes.double(), n_fft) * torch.fft.rfft(reference.double(), n_fft).conj()
    correlation = torch.fft.irfft(spectra, n_fft)
    lags = torch.tensor(sorted(range(-max_lag, max_lag + 1), key=abs), device=envelopes.device)
    values = correlation[:, lags % n_fft]
    best = lags[(values >= values.amax(1, keepdim=True) * (1 - 1e-9)).to(torch.int8).argmax(1)]
    has_onsets = (envelopes.amax(1) > 0) & (reference.amax() > 0)
    return (best * frame_seconds).double().where(has_onsets, torch.nan)
