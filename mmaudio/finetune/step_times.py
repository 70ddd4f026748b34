"""Step times that training has measured on this machine, by which `compile=null` decides.

A compiled and an eager run of the same settings are needed; until both are known, blocks are not compiled. The file is
below the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from mmaudio.config import TrainConfig
from mmaudio.errors import MMAudioError
from mmaudio.finetune.distributed import Distributed
from mmaudio.utils.cores import count_cores
from mmaudio.utils.files import atomic_write
from mmaudio.utils.nested_names import flatten
from mmaudio.weights.store import cache_folder

FIRST_STEPS = 5
"""Steps of a run that compile, record and warm up."""
MIN_STEPS = 20
"""Later steps of a run from which its times are known."""
MAX_ENTRIES = 100
"""Settings whose times are kept."""
SETTINGS = (
    "model",
    "batch_size",
    "gradient_accumulation_steps",
    "preserve_",
    "amp",
    "base_bf16",
    "gradient_checkpointing",
    "cuda_graph",
    "merge_batches",
    "features_in_memory",
    "optimizer",
    "lora.",
)
"""Settings, and beginnings of their names, on which the time of a step depends."""


@dataclass(frozen=True)
class StepTimes:
    """What the steps of a run took."""

    step: float
    """Seconds of one step, the median of those after the first."""
    start: float
    """Seconds that the first steps took beyond as many later ones."""


def measure(seconds: Sequence[float]) -> StepTimes | None:
    """The times of a run whose steps took `seconds`, in order; None where they are too few."""
    first, later = seconds[:FIRST_STEPS], seconds[FIRST_STEPS:]
    if len(later) < MIN_STEPS:
        return None
    step = statistics.median(later)
    return StepTimes(step, max(0.0, sum(first) - step * len(first)))


def key(config: TrainConfig, seconds: float, resident: bool, distributed: Distributed) -> str:
    """A hash of what the times of steps depend on, beside compiling: settings, clips, machine.

    `seconds` is the length of the clips; `resident`: their features are in the device's memory.
    """
    settings = {name: value for name, value in flatten(config.to_dict()).items() if name.startswith(SETTINGS)}
    settings.pop("lora.max_steps", None)
    device = distributed.device
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {count_cores()}",
        "machine": platform.node(),
        "processes": distributed.world_size,
        "torch": torch.__version__,
    }
    text = json.dumps({**settings, **machine, "clips": [seconds, resident]}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keep(name: str, compiled: bool, times: StepTimes) -> None:
    """Keep the times of a run whose `key` is `name`; nothing happens where the file cannot be written.

    Of two runs that end at once, one may be lost.
    """
    entries = _read()
    entry = {**entries.pop(name, {}), _mode(compiled): asdict(times)}
    newest = list(entries.items())[-(MAX_ENTRIES - 1) :]
    with suppress(OSError, MMAudioError), atomic_write(_file()) as temporary:
        temporary.write_text(json.dumps({**dict(newest), name: entry}), encoding="utf-8")


def find(name: str, compiled: bool) -> StepTimes | None:
    """The times that `keep` kept; None where there are none."""
    times = _read().get(name, {}).get(_mode(compiled))
    return None if times is None else StepTimes(**times)


def explain_gain(name: str, steps_left: int) -> str:
    """Why compiling repays for so many more steps, empty where it does not or is not known to."""
    compiled, eager = find(name, True), find(name, False)
    if compiled is None or eager is None:
        return ""
    cost = max(0.0, compiled.start - eager.start)
    if steps_left * (eager.step - compiled.step) <= cost:
        return ""
    return (
        f"blocks are compiled: {steps_left} steps at {compiled.step:.3g} in place of {eager.step:.3g} s "
        f"repay {cost:.0f} s at the start (compile=false: not)"
    )


def _mode(compiled: bool) -> str:
    return "compiled" if compiled else "eager"


def _file() -> Path:
    return cache_folder() / "step_times.json"


def _read() -> dict[str, dict[str, dict[str, float]]]:
    """The entries by key and mode, without those that are damaged or of another version."""
    try:
        entries = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {
        name: {mode: times for mode, times in modes.items() if _is_valid(times)}
        for name, modes in (entries.items() if isinstance(entries, dict) else ())
        if isinstance(modes, dict)
    }


def _is_valid(times: Any) -> bool:
    names = [field.name for field in fields(StepTimes)]
    return (
        isinstance(times, dict)
        and sorted(times) == sorted(names)
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in times.values())
    )
