"""What an evaluation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmaudio.evaluation.inference import Draws


@dataclass(frozen=True)
class Request:
    """What is to be compared, on which clips, and where the results go."""

    checkpoint: Path
    videos: Path
    """The folder that the table's videos are relative to."""
    clips: Path
    features: Path
    output: Path
    """Gets `metrics.json`, `metrics.tsv` and `report/`."""
    draws: Draws = field(default_factory=Draws)
    weights: Path | None = None
    offline: bool = True
    """Whether absent weights are an error rather than fetched."""
    general_videos: Path | None = None
    """Videos of the base's own domain; None: those that ship with the model, if any."""
    model: str | None = None
    """The base model, for an adapter that names none."""
    strengths: tuple[float, ...] = ()
    """Strengths of the adapter to try besides 0 and 1, on a few of the clips."""
    include_training: bool = False
    """Whether clips of source videos that were trained on are compared too, and marked."""
    max_clips: int | None = None
    """At most so many held-out clips, evenly over the videos; None: all."""
    metrics: tuple[str, ...] | None = None
    """Names of the only metrics to compute (`metrics.METRICS`); None: all that can be."""
    check_data: bool = False
    """Whether to list the training clips whose sound does not fit the picture."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
