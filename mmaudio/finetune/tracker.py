"""What a run shows of itself: TensorBoard, `metrics.jsonl` for programs, and the terminal.

    tensorboard --logdir output/<exp_id>

K clips, J time levels.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from mmaudio.config import TrainConfig, flat
from mmaudio.errors import DataError
from mmaudio.finetune.diagnostics import Meter, device_memory, update_norms
from mmaudio.finetune.early_stopping import Progress
from mmaudio.finetune.samples import Samples
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import StepMetrics, in_bins
from mmaudio.finetune.torch_compile import uncompiled
from mmaudio.finetune.validation import HeldOut
from mmaudio.lora.checkpoint import write_whole
from mmaudio.utils.files import unwritable

PLAIN_SECONDS = 10.0
"""Seconds between two lines where the output is no terminal."""
JSONL = "metrics.jsonl"


class Tracker:
    """Writes and prints for one run; with `folder` None (a process that does not lead) it does neither.

    `step` is that of the saved state that the run continues, None where it starts: what the folder shows of later
    steps, or of any, is of a run that was cut off, and is forgotten.
    """

    def __init__(
        self, folder: Path | None, config: TrainConfig, step: int | None, samples: Samples | None = None
    ) -> None:
        self.folder, self.config, self.samples, self.first = folder, config, samples, step or 0
        self._kept = -1 if step is None else step
        self.meter: Meter | None = None
        """Turns speed into utilisation, on GPUs."""
        self._writer: SummaryWriter | None = None
        self._bar: Any = None
        self._recent: list[StepMetrics] = []
        self._start = self._said = 0.0
        self._loss, self._validation = float("nan"), ""

    def __enter__(self) -> Tracker:
        self._start = self._said = time.monotonic()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            forget_after(self.folder / JSONL, self._kept)
            self._writer = SummaryWriter(str(self.folder), purge_step=self._kept + 1)
            if sys.stderr.isatty():
                self._bar = tqdm(total=self.config.steps, initial=self.first, desc="train", dynamic_ncols=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._writer is None or self.folder is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            if kind is None:  # what went wrong before it says more
                raise unwritable(self.folder, error) from error

    def say(self, line: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if self.folder is not None:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def stepped(self, state: TrainState, metrics: StepMetrics) -> None:
        """Take in a step; write means over `log_every` of them."""
        self._recent.append(metrics)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {metrics.loss:.3f}{self._validation}", refresh=False)
            self._bar.update()
        if state.step % self.config.logging.log_every == 0 or state.step == self.config.steps:
            self._log(state)

    def _log(self, state: TrainState) -> None:
        """Write the means over the steps since the last time."""
        recent, self._recent = self._recent, []
        speed = (state.step - self.first) / (time.monotonic() - self._start)
        self._loss = sum(step.loss for step in recent) / len(recent)
        losses, t = (torch.cat(parts) for parts in zip(*((step.losses, step.t) for step in recent), strict=True))
        self._write(
            state.step,
            {
                "train/loss": self._loss,
                "train/grad_norm": sum(step.grad_norm for step in recent) / len(recent),
                "train/learning_rate": recent[-1].learning_rate,
                **self._speeds(speed, losses.device),
                **{f"train_loss_by_time/{name}": value for name, value in in_bins(losses, t).items()},
                **{f"adapter_norm/{name}": value for name, value in update_norms(state.model).items()},
            },
        )
        if self._bar is None and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said, left = time.monotonic(), (self.config.steps - state.step) / speed
            self.say(
                f"step {state.step}/{self.config.steps}: loss {self._loss:.4f}, {speed:.2f} steps/s, {left:.0f} s left"
            )

    def _speeds(self, speed: float, device: torch.device) -> dict[str, float]:
        """Steps per second as everything that follows from it, and the device's memory."""
        clips, memory = speed * self.config.effective_batch, device_memory(device)
        found = {"train/steps_per_second": speed, "train/samples_per_second": clips}
        found |= {} if memory is None else {"train/device_memory_gb": memory}
        return found | ({} if self.meter is None else {"train/flops_utilisation": self.meter.utilisation(clips)})

    def evaluated(self, state: TrainState, losses: Tensor, held: HeldOut) -> None:
        """Write the last evaluation: losses (K, J) by time, every clip's own, their change from the base model's."""
        progress, evaluation = state.progress, state.progress.history[-1]
        changed = progress.from_base(evaluation.losses)
        bins = in_bins(losses.flatten(), held.draws.t)
        scalars = {
            "validation/loss": evaluation.loss,
            "validation/change": changed.mean,
            **{f"validation_loss_by_time/{name}": value for name, value in bins.items()},
        }
        if changed.interval is not None:
            scalars |= {"validation/change_low": changed.interval[0], "validation/change_high": changed.interval[1]}
        clips: dict[str, Any] = {"validation_clips": rounded(held.ids, evaluation.losses)}
        if evaluation.average is not None:
            scalars["validation/loss_of_average"] = evaluation.average_loss
            clips["validation_clips_of_average"] = rounded(held.ids, evaluation.average)
        self._write(state.step, scalars, clips)
        self._validation = f", validation {evaluation.loss:.3f}, best {progress.best:.3f} at {progress.best_step}"
        if self._bar is None:
            self.say(f"step {state.step}/{self.config.steps}: {spoken(progress)}")

    def sample(self, state: TrainState) -> None:
        """Show the fixed held-out clips: in TensorBoard, and as files under `samples`."""
        if self.samples is None or self._writer is None or self.folder is None:
            return
        with uncompiled(self.config):
            drawn = list(self.samples.draw(state))
        for shown in drawn:
            self._writer.add_image(f"{shown.name}/truth, base, adapted", shown.picture, state.step, dataformats="HWC")
            for kind, waveform in shown.waveforms.items():
                self._writer.add_audio(f"{shown.name}/{kind}", waveform[None], state.step, self.samples.rate)
            try:
                self.samples.write(shown, self.folder / "samples", state.step)
            except DataError as error:  # a picture that is missing is no reason to stop training
                self.say(f"samples:    no video of {shown.name} ({error})")

    def finished(self, state: TrainState) -> None:
        """Write the steps that no line has yet, and the settings beside what they reached for TensorBoard's HPARAMS."""
        if self._recent:  # early stopping did not wait for `log_every`
            self._log(state)
        if self._writer is None:
            return
        progress = state.progress
        plain = flat(self.config.plain())
        settings = {
            name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in plain.items()
        }
        reached = {"final/train_loss": self._loss}
        if progress.history:
            change = {"final/validation_change": progress.gain().mean, "final/best_step": progress.best_step}
            reached |= {"final/validation_loss": progress.best, **change}
        self._writer.add_hparams(settings, reached, run_name=".")

    def _write(self, step: int, scalars: dict[str, float], more: dict[str, Any] | None = None) -> None:
        if self._writer is None or self.folder is None:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        try:
            with (self.folder / JSONL).open("a") as file:
                file.write(json.dumps({"step": step, **scalars, **(more or {})}) + "\n")
        except OSError as error:
            raise unwritable(self.folder / JSONL, error) from error


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again, and what is no line of a step."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        write_whole(path, b"".join(line for line in lines if _is_before(line, step)))


def _is_before(line: bytes, step: int) -> bool:
    """Whether it is a whole line, of a step up to `step`."""
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
    except (ValueError, TypeError, KeyError):
        return False


def rounded(ids: list[str], losses: list[float]) -> dict[str, float]:
    """The clips' losses by id, to six places."""
    return {name: round(loss, 6) for name, loss in zip(ids, losses, strict=True)}


def spoken(progress: Progress) -> str:
    """The last evaluation in words: the loss, how it differs from the base model's, whether it is the best."""
    last = progress.history[-1]
    if len(progress.history) == 1:
        return f"validation loss {last.loss:.4f} (the base model)"
    average = "" if last.average is None else f"; running average {last.average_loss:.4f}"
    best = f"best {progress.best:.4f} at step {progress.best_step}"
    mark = "the best so far" if progress.best_step == last.step else best
    return f"validation loss {last.loss:.4f} ({progress.from_base(last.losses)}){average}; {mark}"
