"""Which clips are fit for training: thresholds on what was measured of each. They judge, they do not measure, so that
changing one needs no second look at the videos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

from mmaudio.errors import ConfigError


class Measured(Protocol):
    """What the rules look at; `data.clips.Clip` says what each is."""

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
class Rules:
    """The thresholds; null turns a rule off."""

    min_peak_db: float | None = -60.0
    """Decibels of full scale that the loudest sample has at least."""
    min_lufs: float | None = -65.0
    """Loudness that the sound has at least."""
    max_silence: float | None = 0.98
    """Share of silent blocks. High, as a single bang in silence is a fine thing to learn."""
    max_clipped: float | None = 0.02
    """Share of samples at full scale: the recording was too loud for its device."""
    max_black: float | None = 0.8
    """Share of the time without a picture."""
    max_frozen: float | None = 0.9
    """Share of the time in which the picture does not change, as beside uploaded songs."""
    max_mismatch: float | None = 0.1
    """Seconds of the picture that have no sound: it begins later, ends earlier, or has a hole."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"split.rules.{field.name}={value}: a number, or null for no such rule")
        for name in ("max_silence", "max_clipped", "max_black", "max_frozen"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"split.rules.{name}={value:g}: a share from 0 to 1, or null for no such rule")

    def broken(self, clip: Measured) -> list[str]:
        """One reason per rule that `clip` breaks: a word, a colon, what was found and what is allowed."""
        found = []
        if self.max_mismatch is not None and clip.mismatch > self.max_mismatch + 1e-6:
            found.append(f"sound missing: for {clip.mismatch:.2f} s, at most {self.max_mismatch:g} s")
        if self.min_peak_db is not None and clip.peak_db < self.min_peak_db:
            found.append(f"silent: peak {clip.peak_db:.1f} dB, at least {self.min_peak_db:g} dB")
        elif self.min_lufs is not None and clip.lufs < self.min_lufs:
            found.append(f"faint: {clip.lufs:.1f} LUFS, at least {self.min_lufs:g}")
        elif self.max_silence is not None and clip.silence > self.max_silence:
            found.append(f"mostly silent: {clip.silence:.1%} of it, at most {self.max_silence:.0%}")
        if self.max_clipped is not None and clip.clipped > self.max_clipped:
            found.append(f"clipped sound: {clip.clipped:.1%} of the samples, at most {self.max_clipped:.0%}")
        if self.max_black is not None and clip.black > self.max_black:
            found.append(f"black picture: {clip.black:.0%} of it, at most {self.max_black:.0%}")
        elif self.max_frozen is not None and clip.frozen > self.max_frozen:
            found.append(f"frozen picture: {clip.frozen:.0%} of it, at most {self.max_frozen:.0%}")
        return found


def kind(reason: str) -> str:
    """What of a reason is the same for many clips."""
    return reason.split(":")[0]
