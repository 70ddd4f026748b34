"""Configuration of an evaluation: the clips, the adapter, the sampling, the output folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmaudio.lora.strength import AS_TRAINED, Strength
from mmaudio.utils.trackers import DEFAULT_TRACKERS, PROJECT

DEFAULT_REPORT_CLIPS = 24


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling, the same for both models."""

    seed: int = 0
    samples: int = 1
    """Samples per clip, each from noise of its own."""
    num_steps: int | None = None
    """Solver steps; None: the model's own."""
    guidance_scale: float | None = None
    """None: the model's own."""
    batch_size: int | None = None
    """Clips that are computed together at most; None: by the device and its memory."""

    def to_json(self) -> dict[str, int | float | None]:
        """The settings by their keys in `metrics.json`."""
        return {
            "seed": self.seed,
            "samples": self.samples,
            "steps": self.num_steps,
            "guidance": self.guidance_scale,
            "batch": self.batch_size,
        }


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of an evaluation."""

    checkpoint: Path
    """The adapter."""
    video_root: Path
    """The folder that the table's videos are relative to."""
    clips_tsv: Path
    features_dir: Path
    output_dir: Path
    """Gets `metrics.json`, `metrics.tsv` and `report/`."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    weights: Path | None = None
    offline: bool = True
    """Whether absent weights are an error rather than fetched."""
    general_videos: Path | None = None
    """Videos of the base model's own domain; None: those that ship with the model, if any."""
    shared_dir: Path | None = None
    """The folder of what evaluations of several folds have in common: features of these videos; None: `output_dir`."""
    model: str | None = None
    """The base model, for an adapter whose file does not name it."""
    strengths: tuple[float, ...] | None = ()
    """Strengths of the adapter to try besides 0 and 1, on a few of the clips; None: those of `default_strengths`."""
    include_training: bool = False
    """Whether clips of source videos that were trained on are compared too, and marked."""
    max_clips: int | None = None
    """At most so many held-out clips, evenly over the videos; None: all."""
    report_clips: int = DEFAULT_REPORT_CLIPS
    """Held-out clips that the report's page plays at most; all count in the numbers."""
    metrics: tuple[str, ...] | None = None
    """Names of the only metrics to compute (`metrics.registry.METRICS`); None: every available one."""
    check_data: bool = False
    """Whether to list the training clips whose audio is out of sync with the video."""
    allow_outside: bool = False
    """Whether the table may name videos outside of the folder of videos."""
    strength: Strength = AS_TRAINED
    """Of the adapter."""
    other_adapters: tuple[tuple[Path, Strength], ...] = ()
    """Further adapters whose changes are added, and their strengths."""
    trackers: tuple[str, ...] = DEFAULT_TRACKERS
    """Where scalars go: names of `utils.trackers.TRACKERS`."""
    project: str = PROJECT
    """The project's name in trackers that have projects."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @property
    def adapters(self) -> tuple[tuple[Path, Strength], ...]:
        """All adapters with their strengths."""
        return ((self.checkpoint, self.strength), *self.other_adapters)

    @property
    def report_path(self) -> Path:
        """The report's page; its media lie beside it."""
        return self.output_dir / "report" / "index.html"

    @property
    def general_dir(self) -> Path:
        """The folder of the features of videos of the base model's own domain."""
        return (self.shared_dir or self.output_dir) / "general"

    @property
    def metrics_path(self) -> Path:
        """`metrics.json`, the file that marks the results as complete."""
        return self.output_dir / "metrics.json"

    @property
    def intermediate_dir(self) -> Path:
        """The folder of latents and losses that an interrupted run resumes from."""
        return self.output_dir / ".evaluation"
