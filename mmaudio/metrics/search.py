"""Where judges' files are looked for, and whether absent ones are fetched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Search:
    """Where judges' files are looked for. Only metrics that the user named are worth a download."""

    model: str
    weights: Path | None = None
    """The user's folder of weights; besides it, the usual places."""
    offline: bool = True
    named: Collection[str] = ()
    """Metrics that the user asked for by name."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def fetch(self, metric: str) -> bool:
        """Whether files that the metric needs are fetched where they are absent."""
        return not self.offline and metric in self.named
