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

from mmaudio.adapters import write_whole
from mmaudio.config import TrainConfig
from mmaudio.finetune.samples import Samples
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import StepMetrics, in_bins
from mmaudio.finetune.validation import HeldOut

PLAIN_SECONDS = 10.0
"""Seconds between two lines where the output is no terminal."""
JSONL = "metrics.jsonl"


class Tracker:
    """Writes and prints for one run; with `folder` None (a process that does not lead) it does neither."""

    def __init__(self, folder: Path | None, config: TrainConfig, step: int, samples: Samples | None = None) -> None:
        self.folder, self.config, self.samples, self.first = folder, config, samples, step
        self._writer: SummaryWriter | None = None
        self._bar: Any = None
        self._recent: list[StepMetrics] = []
        self._start = self._said = 0.0

    def __enter__(self) -> Tracker:
        self._start = self._said = time.monotonic()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            forget_after(self.folder / JSONL, self.first)
            self._writer = SummaryWriter(str(self.folder), purge_step=self.first + 1 if self.first else None)
            if sys.stderr.isatty():
                self._bar = tqdm(total=self.config.steps, initial=self.first, desc="train", dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def say(self, line: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if self.folder is not None:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def stepped(self, state: TrainState, metrics: StepMetrics) -> None:
        """Take in a step; write means over `log_every` of them."""
        self._recent.append(metrics)
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{metrics.loss:.3f}", refresh=False)
            self._bar.update()
        if state.step % self.config.logging.log_every and state.step != self.config.steps:
            return
        recent, self._recent = self._recent, []
        speed = (state.step - self.first) / (time.monotonic() - self._start)
        loss = sum(step.loss for step in recent) / len(recent)
        bins = in_bins(torch.cat([step.losses for step in recent]), torch.cat([step.t for step in recent]))
        self._write(
            state.step,
            {
                "train/loss": loss,
                "train/grad_norm": sum(step.grad_norm for step in recent) / len(recent),
                "train/learning_rate": metrics.learning_rate,
                "train/steps_per_second": speed,
                **{f"train_loss_by_time/{name}": value for name, value in bins.items()},
            },
        )
        if self._bar is None and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            left = (self.config.steps - state.step) / speed
            self.say(f"step {state.step}/{self.config.steps}: loss {loss:.4f}, {speed:.2f} steps/s, {left:.0f} s left")

    def evaluated(self, state: TrainState, losses: Tensor, held: HeldOut) -> None:
        """Write an evaluation's losses (K, J): their mean, by time, and every clip's own."""
        mean, progress = float(losses.mean()), state.progress
        bins = in_bins(losses.flatten(), held.draws.t)
        by_time = {f"validation_loss_by_time/{name}": value for name, value in bins.items()}
        by_clip = {name: round(float(row.mean()), 6) for name, row in zip(held.ids, losses, strict=True)}
        self._write(state.step, {"validation/loss": mean, **by_time}, {"validation_clips": by_clip})
        mark = f"best {progress.best:.4f} at step {progress.best_step}"
        if progress.best_step == state.step:
            mark = "the best so far" if state.step else "the base model"
        self.say(f"step {state.step}/{self.config.steps}: validation loss {mean:.4f} ({mark})")

    def sample(self, state: TrainState) -> None:
        """Write sound and mel pictures of the fixed held-out clips."""
        if self.samples is None or self._writer is None:
            return
        for shown in self.samples.draw(state):
            self._writer.add_image(f"{shown.name}/truth, base, adapted", shown.picture, state.step, dataformats="HWC")
            for kind, waveform in shown.waveforms.items():
                self._writer.add_audio(f"{shown.name}/{kind}", waveform[None], state.step, self.samples.rate)

    def _write(self, step: int, scalars: dict[str, float], more: dict[str, Any] | None = None) -> None:
        if self._writer is None or self.folder is None:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        with (self.folder / JSONL).open("a") as file:
            file.write(json.dumps({"step": step, **scalars, **(more or {})}) + "\n")


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will do again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_whole(path, "".join(line for line in lines if json.loads(line)["step"] <= step).encode() if step else b"")
