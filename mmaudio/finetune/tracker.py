"""Tracking of a run: its metrics log, the progress bar, and the lines in the terminal.

K clips, J time levels.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmaudio.config import TrainConfig
from mmaudio.errors import DataError, MMAudioError
from mmaudio.finetune.diagnostics import UtilizationMeter, compute_adapter_norms, peak_memory_gb
from mmaudio.finetune.early_stopping import ValidationHistory
from mmaudio.finetune.initial_adapter import start_name
from mmaudio.finetune.metrics_log import MetricsLog
from mmaudio.finetune.run_inputs import LOCATION_KEYS
from mmaudio.finetune.samples import SampleClip, SampleGenerator
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import StepMetrics, average_by_time
from mmaudio.finetune.torch_compile import eager_mode
from mmaudio.finetune.validation import ValidationSet
from mmaudio.lora.clip_names import hide_files
from mmaudio.utils.escapes import escape_controls
from mmaudio.utils.heartbeat import Heartbeat, has_bars
from mmaudio.utils.nested_names import flatten
from mmaudio.utils.progress import Progress
from mmaudio.utils.trackers import TrackedRun


class Tracker:
    """Logs and prints for one run; with `folder` None (every process but the main one) it does neither.

    `step` is that of the saved state that the run continues, None where it starts: logged entries of later steps (or
    all) are of a run that was cut off, and are removed.
    """

    def __init__(
        self, folder: Path | None, config: TrainConfig, step: int | None, samples: SampleGenerator | None = None
    ) -> None:
        self.folder, self.config, self.samples, self.start_step = folder, config, samples, step or 0
        self.requested_samples: SampleGenerator | None = None
        self._last_logged_step = -1 if step is None else step
        self.meter: UtilizationMeter | None = None
        """Converts speed to utilisation, on GPUs."""
        self._log: MetricsLog | None = None
        self._progress_bar: Any = None
        self._recent_steps: list[StepMetrics] = []
        self._step, self._start_time = self.start_step, 0.0
        self._heartbeat = Heartbeat(self.describe_progress, self._show_progress)
        self._train_loss, self._validation_text = float("nan"), ""

    def __enter__(self) -> Tracker:
        self._start_time = time.monotonic()
        if self.folder is not None:
            self._heartbeat.__enter__()
            logging = self.config.logging
            run = TrackedRun(
                self.folder,
                self.folder.name,
                logging.project,
                settings=shared_settings(self.config),
                offline=self.config.offline,
                last_step=self._last_logged_step,
            )
            self._log = MetricsLog(run, logging.trackers)
            if has_bars():
                self._progress_bar = tqdm(
                    total=self.config.total_steps, initial=self.start_step, desc="train", dynamic_ncols=True
                )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.folder is not None:
            self._heartbeat.__exit__(kind, None, None)
        if self._progress_bar is not None:
            self._progress_bar.close()
        if self._log is None:
            return
        with nullcontext() if kind is None else suppress(MMAudioError):  # an earlier error says more
            self._log.close()

    def print_line(self, line: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if self.folder is not None:
            with suppress(OSError):  # `| tee` ends with Ctrl-C as well, and what is trained is still to be saved
                tqdm.write(escape_controls(line), file=sys.stdout)
                sys.stdout.flush()
            Heartbeat.last_line = time.monotonic()

    def log_step(self, state: TrainState, metrics: StepMetrics) -> None:
        """Record a step; write the means at every `log_every`-th."""
        self._recent_steps.append(metrics)
        self._step, self._train_loss = state.step, metrics.loss
        if self._progress_bar is not None:
            self._progress_bar.set_postfix_str(f"loss {metrics.loss:.3f}{self._validation_text}", refresh=False)
            self._progress_bar.update()
        if state.step % self.config.logging.log_every == 0 or state.step == self.config.total_steps:
            self._log_means(state)

    def _log_means(self, state: TrainState) -> None:
        """Write the means over the steps since the last time."""
        steps, self._recent_steps = self._recent_steps, []
        steps_per_second = (state.step - self.start_step) / (time.monotonic() - self._start_time)
        self._train_loss = sum(step.loss for step in steps) / len(steps)
        losses, t = (torch.cat(tensors) for tensors in zip(*((step.losses, step.t) for step in steps), strict=True))
        scalars = {
            "train/loss": self._train_loss,
            "train/grad_norm": sum(step.grad_norm for step in steps) / len(steps),
            "train/learning_rate": steps[-1].learning_rate,
            **self._speed_scalars(steps_per_second, losses.device),
            **{f"train_loss_by_time/{name}": value for name, value in average_by_time(losses, t).items()},
            **{f"adapter_norm/{name}": value for name, value in compute_adapter_norms(state.model).items()},
        }
        if self._log is not None:
            self._log.write(state.step, scalars)

    def _speed_scalars(self, steps_per_second: float, device: torch.device) -> dict[str, float]:
        """Steps and samples per second; on a GPU, its peak memory and utilisation."""
        samples_per_second = steps_per_second * self.config.effective_batch_size
        scalars = {"train/steps_per_second": steps_per_second, "train/samples_per_second": samples_per_second}
        memory = peak_memory_gb(device)
        if memory is not None:
            scalars["train/device_memory_gb"] = memory
        if self.meter is not None:
            scalars["train/flops_utilisation"] = self.meter.utilisation(samples_per_second)
        return scalars

    def describe_progress(self, elapsed: float) -> str:
        """The step, the loss and the remaining time, `elapsed` seconds after the start."""
        total, num_steps = self.config.total_steps, self._step - self.start_step
        line = f"step {self._step}/{total}: "
        if not num_steps:
            return f"{line}{elapsed:.0f} s so far"
        return (
            f"{line}loss {self._train_loss:.4f}, {num_steps / elapsed:.2f} steps/s, "
            f"{(total - self._step) * elapsed / num_steps:.0f} s left"
        )

    def _show_progress(self, line: str) -> None:
        if self._progress_bar is None:
            self.print_line(line)
        else:
            self._progress_bar.refresh()

    def log_evaluation(self, state: TrainState, losses: Tensor, validation_set: ValidationSet) -> None:
        """Write the last evaluation: losses (K, J) by time, every clip's own, their change from the base model's."""
        history, evaluation = state.history, state.history.evaluations[-1]
        change, ids = history.change_from_base(evaluation.losses), validation_set.ids
        loss_by_time = average_by_time(losses.flatten(), validation_set.draws.t)
        scalars = {
            "validation/loss": evaluation.loss,
            "validation/change": change.mean,
            **{f"validation_loss_by_time/{name}": value for name, value in loss_by_time.items()},
        }
        if change.interval is not None:
            scalars |= {"validation/change_low": change.interval[0], "validation/change_high": change.interval[1]}
        loss_by_clip: dict[str, Any] = {"validation_clips": round_losses(ids, evaluation.losses)}
        if evaluation.ema_losses is not None:
            scalars["validation/loss_of_average"] = evaluation.ema_loss
            loss_by_clip["validation_clips_of_average"] = round_losses(ids, evaluation.ema_losses)
        if self._log is not None:
            self._log.write(state.step, scalars, loss_by_clip)
        best = f"best {history.best_loss:.3f} at {history.best_step}"
        self._validation_text = f", validation {evaluation.loss:.3f}, {best}"
        if self._progress_bar is None:
            self.print_line(
                f"step {state.step}/{self.config.total_steps}: {describe_evaluation(history, start_name(self.config))}"
            )

    def log_samples(self, state: TrainState) -> None:
        """Generate samples of the fixed clips and of the user's own, for TensorBoard and as files under `samples`."""
        generators = [generator for generator in (self.samples, self.requested_samples) if generator is not None]
        if not generators or self._log is None:
            return
        total = sum(generator.num_solver_steps + 2 * len(generator.clips) for generator in generators)
        with Progress(total, "samples: solver steps and clips", inner=True) as counter:
            for generator in generators:
                with eager_mode(self.config):
                    samples = list(counter.count(generator.generate(state, counter.count)))
                for sample in counter.count(samples):
                    self._write_sample(generator, self._log, sample, state.step)

    def _write_sample(self, generator: SampleGenerator, log: MetricsLog, sample: SampleClip, step: int) -> None:
        """Write one sample to TensorBoard and as files."""
        tag = f"{sample.name}/{', '.join(sample.waveforms)}"
        if log.writer is not None:
            log.writer.add_image(tag, sample.spectrograms, step, dataformats="HWC")
            for kind, waveform in sample.waveforms.items():
                log.writer.add_audio(f"{sample.name}/{kind}", waveform[None], step, generator.sample_rate)
        try:
            generator.write(sample, log.folder / "samples", step)
        except DataError as error:  # a video that is missing is no reason to stop training
            self.print_line(f"samples:    no video of {sample.name} ({error})")

    def log_final(self, state: TrainState) -> None:
        """Write the steps that no line has yet, and the final metrics with the settings."""
        if self._recent_steps:  # early stopping did not wait for `log_every`
            self._log_means(state)
        if self._log is None:
            return
        final_metrics = {"final/train_loss": self._train_loss}
        history = state.history
        if history.evaluations:
            change = {"final/validation_change": history.best_change().mean, "final/best_step": history.best_step}
            final_metrics |= {"final/validation_loss": history.best_loss, **change}
        for tracker in self._log.trackers:
            tracker.add_result(shared_settings(self.config), final_metrics)


def shared_settings(config: TrainConfig) -> dict[str, bool | int | float | str]:
    """The settings by dotted name, without folders and names of videos: trackers may send them elsewhere."""
    settings = {name: value for name, value in config.to_dict().items() if name not in LOCATION_KEYS}
    return {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in flatten(hide_files(settings)).items()
    }


def round_losses(ids: list[str], losses: list[float]) -> dict[str, float]:
    """The clips' losses by id, to six places."""
    return {clip_id: round(loss, 6) for clip_id, loss in zip(ids, losses, strict=True)}


def describe_evaluation(history: ValidationHistory, start: str = "base model") -> str:
    """The last evaluation in words: the loss, its change from that of the `start`, whether it is the best."""
    last = history.evaluations[-1]
    if len(history.evaluations) == 1:
        return f"validation loss {last.loss:.4f} (the {start})"
    ema = "" if last.ema_losses is None else f"; EMA {last.ema_loss:.4f}"
    best = f"best {history.best_loss:.4f} at step {history.best_step}"
    mark = "the best so far" if history.best_step == last.step else best
    return f"validation loss {last.loss:.4f} ({history.change_from_base(last.losses)}){ema}; {mark}"
