"""Trackers of scalars: TensorBoard, Weights & Biases and Trackio, an entry of TRACKERS each.

check_trackers(["tensorboard", "wandb"])          # before any work
trackers = open_trackers(["tensorboard", "wandb"], TrackedRun(folder, "dogs"))
trackers[0].add_scalars({"train/loss": 0.5}, step=10)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mmaudio.errors import ConfigError, MMAudioError

PROJECT = "mmaudio-lora"
"""The project's name in trackers that have projects."""
DEFAULT_TRACKERS = ("tensorboard",)


@dataclass(frozen=True)
class TrackedRun:
    """What is tracked: a training, or an evaluation of its adapter."""

    folder: Path
    name: str
    """The experiment's."""
    project: str = PROJECT
    kind: str = "training"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Without names of videos: they may leave the machine."""
    offline: bool = False
    last_step: int = -1
    """Entries of later steps are of a run that was cut off."""


class ScalarTracker(Protocol):
    """Where scalars go."""

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Add the values at a step."""
        ...

    def add_result(self, settings: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
        """Add what came of the settings, to compare runs by."""
        ...

    def close(self) -> None:
        """Write what is still buffered."""
        ...


class TensorBoard:
    """Event files in the run's folder; its `writer` takes audio and images, too."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

        try:
            str(run.folder).encode()
        except UnicodeEncodeError as error:
            raise MMAudioError(
                f"{run.folder}: TensorBoard writes into no folder whose name is not UTF-8; choose another output_dir"
            ) from error
        self.writer = SummaryWriter(str(run.folder), purge_step=run.last_step + 1)

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Add one event per value."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def add_result(self, settings: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
        """Fill the tab HPARAMS."""
        self.writer.add_hparams(dict(settings), dict(scalars), run_name=".")

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb, which WANDB_MODE=offline keeps in the experiment's folder; `wandb sync` uploads it later.

    A training that goes on is a further run of the same group. Values are plotted over the value `step`.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb  # an extra

        settings = wandb.Settings(console="off", disable_git=True, x_disable_meta=True, save_code=False)
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.run = wandb.init(
                project=run.project,
                name=run.name,
                group=run.name,
                job_type=run.kind,
                dir=str(run.folder),
                config=dict(run.settings),
                mode="offline" if run.offline else None,
                settings=settings,
            )
        except wandb.Error as error:
            reason = str(error).splitlines()[0].removesuffix(".")
            raise MMAudioError(
                f"wandb: {reason}; log in with `wandb login`, set WANDB_MODE=offline, or take another tracker"
            ) from error
        self.run.define_metric("*", step_metric="step")

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Log the values, and the step as one of them."""
        self.run.log({**scalars, "step": step})

    def add_result(self, settings: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
        """Fill the run's summary; it has the settings from its beginning."""
        self.run.summary.update(dict(scalars))

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class Trackio:
    """A run of Trackio, in its local database; a training that goes on continues it."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio  # an extra

        name = run.name if run.kind == "training" else f"{run.name} {run.kind}"
        self.run = trackio.init(
            project=run.project,
            name=name,
            group=run.name,
            config=dict(run.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Log the values."""
        self.run.log(dict(scalars), step)

    def add_result(self, settings: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
        """Log the values as the last ones; the run has the settings from its beginning."""
        self.run.log(dict(scalars))

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


@dataclass(frozen=True)
class TrackerEntry:
    """A tracker: the package that it needs, and what opens a run of it."""

    package: str
    open: Callable[[TrackedRun], ScalarTracker]


TRACKERS = {
    "tensorboard": TrackerEntry("tensorboard", TensorBoard),
    "wandb": TrackerEntry("wandb", WeightsAndBiases),
    "trackio": TrackerEntry("trackio", Trackio),
}
"""By the names in `logging.trackers`; wandb and trackio are extras of the same names."""


def check_trackers(names: Sequence[str], setting: str = "logging.trackers") -> None:
    """Raise ConfigError for an unknown tracker, and for one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"{setting}: there is no {name!r}; there are {', '.join(TRACKERS)}")
        if find_spec(TRACKERS[name].package) is None:
            raise ConfigError(
                f"{setting}: {name} is not installed; pip install 'mmaudio-lora[{name}]', or leave it out"
            )


def open_trackers(names: Sequence[str], run: TrackedRun) -> list[ScalarTracker]:
    """Open a run in each; MMAudioError where one refuses."""
    return [TRACKERS[name].open(run) for name in dict.fromkeys(names)]
