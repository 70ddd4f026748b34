"""The training loop: step, log, evaluate, save."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM

from mmaudio.config import TrainConfig
from mmaudio.finetune.checkpoint import Checkpoints
from mmaudio.finetune.dataset import ClipDataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.early_stopping import Change, Evaluation
from mmaudio.finetune.run_inputs import RunInputs
from mmaudio.finetune.signals import StopSignals
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import GradientAccumulator, NonFiniteError, accumulate_gradients, train_step
from mmaudio.finetune.tracker import Tracker
from mmaudio.finetune.validation import ValidationSet, average_by_clip, validate


@dataclass(frozen=True)
class TrainingResult:
    """How training ended, and the best validation loss."""

    folder: Path
    step: int
    reason: str
    """max_steps, early stopping, interrupted."""
    new_steps: int
    """Steps done by this call; 0 where there was nothing left to do."""
    best_loss: float
    """Lowest validation loss; infinite where there is no validation."""
    best_step: int
    base_loss: float
    """Validation loss at step 0."""
    change: Change | None = None
    """From the base to the best; None where there is no validation."""
    signal: int | None = None
    """The signal that came, perhaps when all steps were done; SIGTERM where it came to another process."""


@dataclass
class TrainingRun:
    """The objects that the training loop works with."""

    state: TrainState
    dataset: ClipDataset
    validation_set: ValidationSet | None
    inputs: RunInputs
    checkpoints: Checkpoints
    tracker: Tracker
    distributed: Distributed
    accumulate: GradientAccumulator = accumulate_gradients
    base_samples: ClipDataset | None = None
    """The base's own samples; None where the base is not preserved."""
    step_seconds: list[float] = field(default_factory=list)
    """What every step of this process took."""

    @property
    def config(self) -> TrainConfig:
        """The run's settings."""
        return self.inputs.config


def fit(run: TrainingRun) -> TrainingResult:
    """Train from the state's step to the end, or until a signal; the state on disk is then up to date."""
    state, config, tracker, start_step = run.state, run.config, run.tracker, run.state.step
    if is_finished(state, config):
        return build_result(run, start_step)
    with tracker, StopSignals(run.distributed.is_main) as signals:
        if run.validation_set is not None and state.history.last_step < 0:
            evaluate(run)
        stop = False
        while not (stop or is_finished(state, config)):
            if state.phase_is_over:
                enter_next_phase(run)
            size, begin = state.micro_batch, time.monotonic()
            try:
                metrics = train_step(state, run.dataset, config, run.distributed, run.accumulate, run.base_samples)
            except NonFiniteError:  # the state is that of before the step
                save(run)
                raise
            run.step_seconds.append(time.monotonic() - begin)
            if state.micro_batch != size:
                tracker.print_line(f"step {state.step}: out of memory; {state.micro_batch} clips at once from here")
            tracker.log_step(state, metrics)
            if is_due(config.eval_every, state.step) or state.step == config.total_steps:
                evaluate(run)
            stop = run.distributed.all_reduce_any(signals.received is not None)
            if is_due(config.logging.sample_every, state.step) or (is_finished(state, config) and not stop):
                tracker.log_samples(state)
            if stop or is_due(config.save_every, state.step) or is_finished(state, config):
                save(run)
        if not stop:
            tracker.log_final(state)
        is_signalled = stop or run.distributed.all_reduce_any(
            signals.received is not None
        )  # also amid the last samples
    signal = (signals.received or SIGTERM) if is_signalled else None  # SIGTERM: of another process
    return build_result(run, start_step, signal, is_interrupted=stop)


def is_due(interval: int, step: int) -> bool:
    """True at every `interval`-th step; never where the interval is 0."""
    return interval > 0 and step % interval == 0


def is_finished(state: TrainState, config: TrainConfig) -> bool:
    """True where all steps are done, or early stopping has run out of patience."""
    stopping = config.early_stopping
    out_of_patience = stopping.enabled and state.history.num_bad_evaluations >= stopping.patience
    return state.step >= config.total_steps or out_of_patience


def enter_next_phase(run: TrainingRun) -> None:
    """Grow the adapter to the rank of the phase that the next step belongs to."""
    state = run.state
    state.enter_phase(state.lora.phase_at(state.step), state.draws.generator)
    run.tracker.print_line(f"step {state.step}: the rank is {state.lora.in_phase(state.phase).rank} from here")


def evaluate(run: TrainingRun) -> None:
    """Measure the validation loss, of the EMA too where it is due; write the best adapter so far."""
    if run.validation_set is None:
        return
    state, config = run.state, run.config
    losses = validate(state, run.validation_set, config, run.distributed)
    ema_losses = None
    if ema_is_due(state, config):
        ema_losses = average_by_clip(validate(state, run.validation_set, config, run.distributed, ema=True))
    evaluation = Evaluation(state.step, average_by_clip(losses), ema_losses)
    is_best = state.history.add(evaluation, config.early_stopping.min_delta)
    run.tracker.log_evaluation(state, losses, run.validation_set)
    if is_best and run.distributed.is_main:
        run.checkpoints.save_adapter(run.checkpoints.best, state, run.inputs, ema=evaluation.ema_is_better)


def ema_is_due(state: TrainState, config: TrainConfig) -> bool:
    """True where this evaluation measures the EMA too: every `average_every`-th one, and the run's last."""
    if state.ema is None or state.step == 0:
        return False
    return is_due(config.validation.average_every, len(state.history.evaluations)) or state.step >= config.total_steps


def save(run: TrainingRun) -> None:
    """Write the newest adapter and its EMA (the best, too, without validation), then the state."""
    if run.distributed.is_main:
        files = run.checkpoints
        for path in (files.last,) if run.validation_set is not None else (files.last, files.best):
            files.save_adapter(path, run.state, run.inputs)
        if run.state.ema is not None:
            files.save_adapter(files.ema, run.state, run.inputs, ema=True)
        files.save(run.state, run.inputs)
    run.distributed.barrier()


def build_result(
    run: TrainingRun, start_step: int, signal: int | None = None, is_interrupted: bool = False
) -> TrainingResult:
    """The result of a loop that began at `start_step`; `signal` is the one that came."""
    state, history = run.state, run.state.history
    reason = "max_steps" if state.step >= run.config.total_steps else "early stopping"
    return TrainingResult(
        run.checkpoints.root,
        state.step,
        "interrupted" if is_interrupted else reason,
        new_steps=state.step - start_step,
        best_loss=history.best_loss,
        best_step=history.best_step,
        base_loss=history.base_loss,
        change=history.best_change() if history.evaluations else None,
        signal=signal,
    )
