"""Filter rules: thresholds on a clip's measurements. Changing one needs no new scan of the videos."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

from mmaudio.errors import ConfigError

MAX_DIGITS = 9
"""Decimals of a number in a reason, at most."""


class ClipMeasurements(Protocol):
    """The measurements that the rules test; `data.clips.Clip` documents them."""

    @property
    def peak_db(self) -> float:
        """See `data.clips.Clip`."""
        ...

    @property
    def lufs(self) -> float:
        """See `data.clips.Clip`."""
        ...

    @property
    def silence(self) -> float:
        """See `data.clips.Clip`."""
        ...

    @property
    def clipped(self) -> float:
        """See `data.clips.Clip`."""
        ...

    @property
    def black(self) -> float:
        """See `data.clips.Clip`."""
        ...

    @property
    def frozen(self) -> float:
        """See `data.clips.Clip`."""
        ...

    @property
    def mismatch(self) -> float:
        """See `data.clips.Clip`."""
        ...


@dataclass
class FilterRules:
    """The thresholds; null turns a rule off."""

    min_peak_db: float | None = -60.0
    """the loudest sample, decibels of full scale"""
    min_lufs: float | None = -65.0
    """loudness"""
    max_silence: float | None = 0.98
    """share of silent blocks

    High, since a single bang in silence is worth learning."""
    max_clipped: float | None = 0.02
    """share of samples at full scale

    Above it the recording was too loud for its device."""
    max_black: float | None = 0.8
    """share of the time without a picture"""
    max_frozen: float | None = 0.9
    """share of the time in which the picture does not change

    Such as the still picture of an uploaded song."""
    max_mismatch: float | None = 0.1
    """seconds of the picture without sound

    The sound starts later, ends earlier, or has a gap."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"split.rules.{field.name}={value}: a number, or null for no such rule")
        for name in ("max_silence", "max_clipped", "max_black", "max_frozen"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"split.rules.{name}={value:g}: a share from 0 to 1, or null for no such rule")

    def find_violations(self, clip: ClipMeasurements) -> list[str]:
        """One reason per rule that `clip` breaks: kind, colon, the measurement and the threshold."""
        return [*self._audio_violations(clip), *self._video_violations(clip)]

    def _audio_violations(self, clip: ClipMeasurements) -> list[str]:
        reasons = []
        if self.max_mismatch is not None and clip.mismatch > self.max_mismatch + 1e-6:
            missing = format_beside(clip.mismatch, self.max_mismatch, 2)
            reasons.append(f"sound missing: for {missing} s, at most {self.max_mismatch:g} s")
        if self.min_peak_db is not None and clip.peak_db < self.min_peak_db:
            reasons.append(
                f"silent: peak {format_beside(clip.peak_db, self.min_peak_db)} dB, at least {self.min_peak_db:g} dB"
            )
        elif self.min_lufs is not None and clip.lufs < self.min_lufs:
            reasons.append(f"faint: {format_beside(clip.lufs, self.min_lufs)} LUFS, at least {self.min_lufs:g}")
        elif self.max_silence is not None and clip.silence > self.max_silence:
            reasons.append(f"mostly silent: {_shares(clip.silence, self.max_silence, 'of it', 1)}")
        if self.max_clipped is not None and clip.clipped > self.max_clipped:
            reasons.append(f"clipped sound: {_shares(clip.clipped, self.max_clipped, 'of the samples', 1)}")
        return reasons

    def _video_violations(self, clip: ClipMeasurements) -> list[str]:
        if self.max_black is not None and clip.black > self.max_black:
            return [f"black picture: {_shares(clip.black, self.max_black)}"]
        if self.max_frozen is not None and clip.frozen > self.max_frozen:
            return [f"frozen picture: {_shares(clip.frozen, self.max_frozen)}"]
        return []


def format_beside(value: float, limit: float, digits: int = 1) -> str:
    """`value` with `digits` decimals, or as many more as tell it from `limit`."""
    while f"{value:.{digits}f}" == f"{limit:.{digits}f}" and digits < MAX_DIGITS:
        digits += 1
    return f"{value:.{digits}f}"


def _shares(value: float, limit: float, of: str = "of it", digits: int = 0) -> str:
    return f"{format_beside(100 * value, 100 * limit, digits)}% {of}, at most {round(100 * limit, MAX_DIGITS):g}%"


def reason_kind(reason: str) -> str:
    """The words of a reason before its numbers, the same for many clips."""
    return reason.split(":")[0]
