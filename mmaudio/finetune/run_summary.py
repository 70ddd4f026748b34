"""What a run says of itself before it starts: what is adapted, on which data, and how much memory that takes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mmaudio.config import TrainConfig
from mmaudio.data.feature_store import ClipSet
from mmaudio.finetune.dataset import Material
from mmaudio.finetune.diagnostics import sample_draws
from mmaudio.finetune.loop import Outcome
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import losses
from mmaudio.lora import base_values
from mmaudio.lora.adapter import parameter_counts
from mmaudio.lora.config import LoRAConfig
from mmaudio.utils.memory import free_memory


def adapter_lines(state: TrainState, config: TrainConfig) -> list[str]:
    """The adapted modules by block and kind, and the parameters by block."""
    names = state.targets
    kinds = Counter(re.sub(r"\.\d+\.", "[*].", re.sub(r"\.w\d$", "", name)) for name in names)
    counts = parameter_counts(state.model)
    blocks = ", ".join(f"{name} {readable(count)}" for name, count in counts.blocks.items())
    return [
        *kind_lines(config.lora, len(names)),
        *(f"            {count:3d} x {kind}" for kind, count in kinds.items()),
        f"parameters: {readable(counts.total)} in all, {readable(counts.trainable)} trained "
        f"({100 * counts.trainable / counts.total:.2f} %)",
        f"            {blocks}",
    ]


def kind_lines(lora: LoRAConfig, layers: int) -> list[str]:
    """Which kind of adapter it is, its rank, and how that grows."""
    if not lora.enabled:
        return ["adapter:    none, every weight of the network is trained"]
    kind = "" if lora.kind == "LoRA" else f"{lora.kind}, "
    own = "".join(f", {pattern} {rank}" for pattern, rank in lora.rank_pattern.items())
    bias = {"none": "", "all": ", all biases", "lora_only": ", their biases"}[lora.bias]
    lines = [f"adapter:    {kind}rank {lora.rank}{own}, alpha {lora.alpha:g}, on {layers} layers{bias}"]
    steps = list(accumulate(phase.max_steps for phase in lora.phases))
    grown = ", ".join(f"rank {phase.rank} to step {end}" for phase, end in zip(lora.phases, steps, strict=True))
    return [*lines, f"phases:     {grown}"] if grown else lines


def data_lines(train: ClipSet, held_out: ClipSet | None, config: TrainConfig) -> list[str]:
    """Clips, videos and hours of each part."""
    lines = [f"training:   {_amount(train)}; a step takes {config.effective_batch} clips"]
    if held_out is None:
        return [*lines, "validation: off; the last adapter counts as the best"]
    note = "" if held_out.clips[0].split != "test" else " (the test clips: there are too few videos for both)"
    return [*lines, f"validation: {_amount(held_out)}, {config.validation.levels} flow times each{note}"]


def _amount(clips: ClipSet) -> str:
    hours = len(clips) * clips.seconds / 3600
    return f"{len(clips)} clips of {len(set(clips.videos))} videos, {hours:.2f} h"


def memory_line(state: TrainState, clips: Material, held: Material | None, config: TrainConfig) -> str:
    """What training will hold in memory, the activations measured on one clip and on two."""
    trained = sum(weight.nbytes for weight in state.trained().values())
    one, two = (saved_bytes(state, clips, config, count) for count in (1, 2))
    parts = {
        "weights": sum(weight.nbytes for weight in (*state.model.parameters(), *base_values.of(state.model).tensors())),
        "gradients and optimizer": trained * (4 if state.average is not None else 3),
        "activations": one + (two - one) * (config.batch_size - 1),
        "data": sum(part.nbytes() for part in (clips, held) if part is not None),
    }
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    line = f"memory:     about {sum(parts.values()) / 1e9:.2f} GB ({listed})"
    free = free_memory(next(state.model.parameters()).device)
    if parts["gradients and optimizer"] + parts["activations"] <= free:
        return line
    return f"{line}; only {free / 1e9:.2f} GB are free: lower batch_size and raise gradient_accumulation_steps"


def saved_bytes(state: TrainState, clips: Material, config: TrainConfig, count: int) -> int:
    """Bytes that the backward pass of `count` clips needs kept, weights not counted; uses up nothing random."""
    own = {weight.untyped_storage().data_ptr() for weight in state.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its history, an operation that keeps its own result would never be freed

    draws = sample_draws(clips, count)
    state.model.eval()  # without dropout, whose masks add little
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses(state.network, clips, draws, compute_dtype(clips.mean.device, config.amp))
    return sum(kept.values())


def readable(count: int) -> str:
    """A count of parameters: `3.55 M`."""
    return f"{count / 1e6:.2f} M"


def sweep_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """A table of a sweep's runs by what they do not share, the lowest validation loss first, and that one's folder."""
    runs = sorted(outcomes, key=lambda run: run.best)
    rows = [("run", "steps", "base", "best", "at step", "change")]
    for name, run in zip(_differing([run.folder.name for run in runs]), runs, strict=True):
        numbers = (str(run.step), f"{run.base:.4f}", f"{run.best:.4f}", str(run.best_step))
        rows.append((name, *numbers, "" if run.gain is None else str(run.gain)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*table, f"lowest loss: {runs[0].folder}"] if math.isfinite(runs[0].best) else table


def _differing(names: Sequence[str]) -> list[str]:
    """Names of the form `key=value,key=value` without the pairs that all of them have; whole where nothing is left."""
    pairs = [re.split(r",(?=[\w.+~-]+=)", name) for name in names]
    shared = set(pairs[0]).intersection(*pairs)
    short = [",".join(pair for pair in own if pair not in shared) for own in pairs]
    return short if all(short) else list(names)
