"""The training loop: step, log, evaluate, save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

from mmaudio.config import TrainConfig
from mmaudio.finetune.checkpoint import Checkpoints, Origin
from mmaudio.finetune.dataset import Material
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.early_stopping import Change, Evaluation
from mmaudio.finetune.signals import Interrupts
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import Batch, NotFinite, batch_losses, train_step
from mmaudio.finetune.tracker import Tracker
from mmaudio.finetune.validation import HeldOut, by_clip, validate


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
    gain: Change | None = None
    """From the base to the best; None where there is no validation."""
    signal: int | None = None
    """The signal that interrupted; SIGTERM where it came to another process."""


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
    batch: Batch = batch_losses

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
            if state.phase_is_over:
                next_phase(run)
            try:
                metrics = train_step(state, run.clips, config, run.team, run.batch)
            except NotFinite:  # the state is that of before the step
                save(run)
                raise
            run.tracker.stepped(state, metrics)
            if every(config.eval_every, state.step) or state.step == config.steps:
                evaluate(run)
            stop = run.team.any(interrupts.asked is not None)
            if every(config.logging.sample_every, state.step) or (finished(state, config) and not stop):
                run.tracker.sample(state)
            if stop or every(config.save_every, state.step) or finished(state, config):
                save(run)
        if not stop:
            run.tracker.finished(state)
    return outcome(run, start, (interrupts.asked or SIGTERM) if stop else None)  # another process may have been asked


def next_phase(run: Run) -> None:
    """Let the adapter grow to the rank of the phase that the next step belongs to."""
    state = run.state
    state.enter_phase(state.lora.phase_at(state.step), state.generator)
    run.tracker.say(f"step {state.step}: the rank is {state.lora.in_phase(state.phase).rank} from here")


def every(interval: int, step: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) is due."""
    return interval > 0 and step % interval == 0


def finished(state: TrainState, config: TrainConfig) -> bool:
    """Whether all steps are done, or early stopping has run out of patience."""
    stopping = config.early_stopping
    return state.step >= config.steps or (stopping.enabled and state.progress.stale >= stopping.patience)


def evaluate(run: Run) -> None:
    """Measure the held-out clips, now and then the running average as well; the best adapter so far is written."""
    if run.held is None:
        return
    state, config, progress = run.state, run.config, run.state.progress
    losses = validate(state, run.held, config, run.team)
    average = validate(state, run.held, config, run.team, average=True) if average_due(state, config) else None
    evaluation = Evaluation(state.step, by_clip(losses), None if average is None else by_clip(average))
    best = progress.take_in(evaluation, config.early_stopping.min_delta)
    run.tracker.evaluated(state, losses, run.held)
    if best and run.team.leads:
        run.files.save_adapter(run.files.best, state, run.origin, evaluation.averaged)


def average_due(state: TrainState, config: TrainConfig) -> bool:
    """Whether this evaluation measures the running average too: every `average_every`-th one, and the run's last."""
    if state.average is None or state.step == 0:
        return False
    number = len(state.progress.history)
    return every(config.validation.average_every, number) or state.step >= config.steps


def save(run: Run) -> None:
    """Write the newest adapter and its running average (the best, too, where nothing validates), then the state."""
    if run.team.leads:
        files = run.files
        for path in (files.last,) if run.held is not None else (files.last, files.best):
            files.save_adapter(path, run.state, run.origin)
        if run.state.average is not None:
            files.save_adapter(files.average, run.state, run.origin, averaged=True)
        files.save(run.state, run.origin)
    run.team.wait()


def outcome(run: Run, start: int, signal: int | None) -> Outcome:
    """The end of the run in words and numbers."""
    state, progress = run.state, run.state.progress
    done = "max_steps" if state.step >= run.config.steps else "early stopping"
    reason = done if signal is None else "interrupted"
    new, files = state.step - start, run.files
    best, gain = (progress.best, progress.best_step), progress.gain() if progress.history else None
    return Outcome(files.root, state.step, reason, new, *best, progress.base, gain, signal)
