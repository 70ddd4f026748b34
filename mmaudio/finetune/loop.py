"""The training loop: step, log, evaluate, save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmaudio.config import TrainConfig
from mmaudio.finetune.checkpoint import Checkpoints, Origin
from mmaudio.finetune.dataset import Material
from mmaudio.finetune.interrupts import Interrupts
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import train_step
from mmaudio.finetune.team import Team
from mmaudio.finetune.tracking import Tracker
from mmaudio.finetune.validation import HeldOut, validate


@dataclass(frozen=True)
class Outcome:
    """How training ended."""

    folder: Path
    step: int
    reason: str
    """max_steps, early stopping, interrupted."""
    new_steps: int
    """Steps done by this call; 0 where there was nothing left to do."""
    best: float
    """Lowest validation loss; infinite where there is no validation."""
    best_step: int
    base: float
    """Validation loss at step 0."""
    signal: int | None = None
    """The signal that interrupted."""


@dataclass
class Run:
    """What the loop works with."""

    state: TrainState
    clips: Material
    held: HeldOut | None
    origin: Origin
    files: Checkpoints
    tracker: Tracker
    team: Team

    @property
    def config(self) -> TrainConfig:
        """The run's settings."""
        return self.origin.config


def fit(run: Run) -> Outcome:
    """Train from the state's step to the end, or until a signal; the state on disk is then up to date."""
    state, config, start = run.state, run.config, run.state.step
    if finished(state, config):
        return outcome(run, start, None)
    with run.tracker, Interrupts() as interrupts:
        if run.held is not None and state.progress.evaluated < 0:
            evaluate(run)
        stop = False
        while not (stop or finished(state, config)):
            run.tracker.stepped(state, train_step(state, run.clips, config, run.team))
            if every(config.eval_every, state.step) or state.step == config.steps:
                evaluate(run)
            stop = run.team.any(interrupts.asked is not None)
            if every(config.logging.sample_every, state.step) or (finished(state, config) and not stop):
                run.tracker.sample(state)
            if stop or every(config.save_every, state.step) or finished(state, config):
                save(run)
    return outcome(run, start, interrupts.asked if stop else None)


def every(interval: int, step: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) is due."""
    return interval > 0 and step % interval == 0


def finished(state: TrainState, config: TrainConfig) -> bool:
    """Whether all steps are done, or early stopping has run out of patience."""
    stopping = config.early_stopping
    return state.step >= config.steps or (stopping.enabled and state.progress.stale >= stopping.patience)


def evaluate(run: Run) -> None:
    """Measure the held-out clips; the best adapter so far is written."""
    if run.held is None:
        return
    state, config = run.state, run.config
    losses = validate(state, run.held, config, run.team)
    best = state.progress.take_in(state.step, float(losses.mean()), config.early_stopping.min_delta)
    run.tracker.evaluated(state, losses, run.held)
    if best and run.team.leads:
        run.files.save_adapter(run.files.best, state, run.origin)


def save(run: Run) -> None:
    """Write the newest adapter (also as the best where nothing validates), then the state."""
    if run.team.leads:
        for path in (run.files.last,) if run.held is not None else (run.files.last, run.files.best):
            run.files.save_adapter(path, run.state, run.origin)
        run.files.save(run.state, run.origin)
    run.team.wait()


def outcome(run: Run, start: int, signal: int | None) -> Outcome:
    """The end of the run in words and numbers."""
    state, progress = run.state, run.state.progress
    done = "max_steps" if state.step >= run.config.steps else "early stopping"
    reason = done if signal is None else "interrupted"
    base = progress.history[0][1] if progress.history else float("inf")
    return Outcome(
        run.files.root, state.step, reason, state.step - start, progress.best, progress.best_step, base, signal
    )
