"""What the command line of the page sets for all who use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmaudio.app.folders import Folders


@dataclass(frozen=True)
class AppConfig:
    """Folders, weights and device."""

    folders: Folders
    weights: Path | None = None
    offline: bool = False
    device: str = "auto"

    @property
    def weight_flags(self) -> list[str]:
        """The flags of every command that reads weights."""
        return [*([] if self.weights is None else [f"--weights={self.weights}"]), *(["--offline"] * self.offline)]
