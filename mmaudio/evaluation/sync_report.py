"""Outcome of the sync check: the training clips whose audio is out of sync with the video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_LISTED = 20
"""Clips that a terminal lists."""


@dataclass(frozen=True)
class OutOfSyncClip:
    """A training clip whose audio is out of sync with the video."""

    video: str
    start: float
    end: float
    seconds: float
    """Size of the offset."""
    description: str
    """In words."""


@dataclass(frozen=True)
class SyncReport:
    """Outcome of the sync check."""

    method: str
    """How audio and video were compared, in words."""
    num_clips: int
    out_of_sync: Sequence[OutOfSyncClip]
    """Largest offset first."""
    undecided: int
    """Number of clips without a clear outcome."""

    def to_json(self) -> dict[str, Any]:
        """The outcome by its keys in `metrics.json`."""
        misfits = [
            {
                "video": clip.video,
                "start": clip.start,
                "end": clip.end,
                "seconds": clip.seconds,
                "what": clip.description,
            }
            for clip in self.out_of_sync
        ]
        return {"way": self.method, "clips": self.num_clips, "misfits": misfits, "unclear": self.undecided}

    def summary(self) -> str:
        """The outcome in a sentence or two."""
        verb = "has" if len(self.out_of_sync) == 1 else "have"
        counts = f"{len(self.out_of_sync)} of {self.num_clips} training clips {verb} audio that is out of sync"
        undecided = f" {self.undecided} could not be decided: steady sounds, or little that moves."
        return f"{counts}, by {self.method}.{undecided if self.undecided else ''}"

    def terminal_lines(self) -> list[str]:
        """The summary and the clips with the largest offsets."""
        worst, remaining = self.out_of_sync[:MAX_LISTED], len(self.out_of_sync) - MAX_LISTED
        lines = [f"  {clip.video}, {clip.start:g} to {clip.end:g} s: {clip.description}" for clip in worst]
        lines += [f"  and {remaining} more, in the report"] if remaining > 0 else []
        return [f"data: {self.summary()}", *lines]
