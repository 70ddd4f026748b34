"""The lines that a run prints before its first step and after its last: adapter, data, device; losses, result."""

from __future__ import annotations

import re
from collections import Counter
from itertools import accumulate
from pathlib import Path

from mmaudio.config import TrainConfig
from mmaudio.data.feature_set import AnyFeatureSet
from mmaudio.finetune.early_stopping import Change
from mmaudio.finetune.feature_memory import FeatureMemory
from mmaudio.finetune.initial_adapter import InitialAdapter
from mmaudio.finetune.loop import TrainingResult, TrainingRun
from mmaudio.finetune.memory_estimate import format_memory_line
from mmaudio.finetune.precision import compute_dtype
from mmaudio.finetune.state import TrainState
from mmaudio.lora.adapter import parameter_counts
from mmaudio.lora.config import LoRAConfig


def format_start_lines(run: TrainingRun, memory: FeatureMemory) -> list[str]:
    """What is trained, on which clips, with how much memory, on which device."""
    config, device = run.config, run.distributed.device
    dtype = str(compute_dtype(device, config.amp)).removeprefix("torch.")
    validation_dataset = None if run.validation_set is None else run.validation_set.dataset
    lines = [
        *_format_adapter_lines(run.state, config),
        *_format_initial_lines(run.inputs.initial),
        *_format_data_lines(run.inputs.train, run.inputs.held_out, config),
    ]
    if not run.dataset.resident:
        lines.append(f"features:   stay on disk, {memory} (features_in_memory); every batch is read and projected")
    lines.append(format_memory_line(run.state, run.dataset, validation_dataset, config))
    lines.append(f"computing:  on {device} in {dtype}, processes: {run.distributed.world_size}")
    if config.warmup_steps >= config.total_steps:
        lines.append(f"warm-up:    warmup_steps={config.warmup_steps} reaches the last step: low rates throughout")
    return lines


def _format_adapter_lines(state: TrainState, config: TrainConfig) -> list[str]:
    """The adapted modules by block and kind, and the parameters by block."""
    names = state.targets
    kinds = Counter(re.sub(r"\.\d+\.", "[*].", re.sub(r"\.w\d$", "", name)) for name in names)
    counts = parameter_counts(state.model)
    blocks = ", ".join(f"{name} {format_count(count)}" for name, count in counts.blocks.items())
    return [
        *_format_adapter_kind_lines(config.lora, len(names)),
        *(f"            {count:3d} x {kind}" for kind, count in kinds.items()),
        f"parameters: {format_count(counts.total)} in all, {format_count(counts.trainable)} trained "
        f"({100 * counts.trainable / counts.total:.2f} %)",
        f"            {blocks}",
    ]


def _format_adapter_kind_lines(lora: LoRAConfig, num_layers: int) -> list[str]:
    """The kind of adapter, its ranks, and how they grow by phase."""
    if not lora.enabled:
        return ["adapter:    none, every weight of the network is trained"]
    kind = "" if lora.method_name == "LoRA" else f"{lora.method_name}, "
    layer_ranks = "".join(f", {pattern} {rank}" for pattern, rank in lora.rank_pattern.items())
    bias = {"none": "", "all": ", all biases", "lora_only": ", their biases"}[lora.bias]
    lines = [f"adapter:    {kind}rank {lora.rank}{layer_ranks}, alpha {lora.alpha:g}, on {num_layers} layers{bias}"]
    ends = list(accumulate(phase.max_steps for phase in lora.phases))
    phases = ", ".join(f"rank {phase.rank} to step {end}" for phase, end in zip(lora.phases, ends, strict=True))
    return [*lines, f"phases:     {phases}"] if phases else lines


def _format_initial_lines(initial: InitialAdapter | None) -> list[str]:
    """The adapter that training starts from."""
    if initial is None:
        return []
    return [f"init_from:  {initial.path}, step {initial.adapter.step}, rank {initial.adapter.lora.rank}"]


def _format_data_lines(train: AnyFeatureSet, held_out: AnyFeatureSet | None, config: TrainConfig) -> list[str]:
    """Clips, videos and hours of training and validation."""
    lines = [f"training:   {_format_amount(train)}; a step takes {config.effective_batch_size} clips"]
    if held_out is None:
        return [*lines, "validation: off; the last adapter counts as the best"]
    note = "" if held_out.clips[0].split != "test" else " (the test clips: there are too few videos for both)"
    return [*lines, f"validation: {_format_amount(held_out)}, {config.validation.levels} flow times each{note}"]


def format_result_lines(result: TrainingResult, best_adapter: Path, start: str = "base model") -> list[str]:
    """How training ended: the reason, the change of the validation loss, the file of the best adapter.

    `start` is what the loss at step 0 is of.
    """
    if result.reason == "interrupted":
        return [f"interrupted at step {result.step}, saved; the same command continues from here"]
    ending = f"finished at step {result.step} ({result.reason})"
    limit = "max_steps" if result.reason == "max_steps" else "early_stopping.patience"
    lines = [ending if result.new_steps else f"nothing to do: this run {ending}; a higher {limit} would continue it"]
    if result.best_step == 0:
        lines.append(
            f"no evaluation was better than the {start}: best_lora.pt changes nothing. Try preset=more_capacity"
        )
    elif result.change is not None:
        name, best = start.removesuffix(" model"), f"{result.best_loss:.4f} at step {result.best_step}, the best"
        losses = f"{result.base_loss:.4f} for the {name}, {best}"
        lines += [f"validation: {losses}", f"            change {result.change}: {describe_change(result.change)}"]
    return [*lines, f"adapter:    {best_adapter}"]


def describe_change(change: Change) -> str:
    """Whether a change is an improvement; the best of many evaluations looks better by chance, too."""
    return "better, on the clips that also chose this step" if change.is_significant else "cannot tell"


def format_count(count: int) -> str:
    """A count of parameters: `3.55 M`."""
    return f"{count / 1e6:.2f} M"


def _format_amount(clips: AnyFeatureSet) -> str:
    hours = len(clips) * clips.seconds / 3600
    return f"{len(clips)} clips of {len(set(clips.videos))} videos, {hours:.2f} h"
