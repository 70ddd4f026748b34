"""Checkpoints of an experiment: the state to resume from, and the adapters.

output/<exp_id>/config.yaml
output/<exp_id>/lora_checkpoints/state.pt, state.previous.pt     the trainer's own
output/<exp_id>/lora_checkpoints/best_lora.pt, last_lora.pt      and a PEFT folder beside each
output/<exp_id>/lora_checkpoints/average_lora.pt                 the EMA of the last one
output/<exp_id>/lora_checkpoints/<exp_id>_lora.safetensors       the best one as a single file, to pass on
"""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from mmaudio.config import TrainConfig
from mmaudio.data.folds import folds_folder
from mmaudio.errors import TrainingError
from mmaudio.finetune.run_inputs import LOCATION_KEYS, RunInputs, describe_differences
from mmaudio.finetune.state import TrainState
from mmaudio.lora.adapter import adapter_state, saved_lora_config
from mmaudio.lora.checkpoint import AdapterFile, write_adapter, write_synced
from mmaudio.model.state_dict import LOAD_ERRORS, read_failure
from mmaudio.utils.checksums import find_damage
from mmaudio.utils.files import temporary_path

FORMAT = 2
"""Version of the state file."""


def experiment_folder(config: TrainConfig) -> Path:
    """`output_dir/exp_id`, or with resume=false and adapters or folds in it the next free one: `exp_id-2`, ..."""
    folder = Path(config.output_dir) / config.exp_id
    if config.resume or not _is_begun(folder):
        return folder
    siblings = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(sibling for sibling in siblings if not _is_begun(sibling))


def _is_begun(folder: Path) -> bool:
    """Whether an experiment has adapters, a state or folds."""
    return Checkpoints(folder).folder.exists() or folds_folder(folder).exists()


@dataclass(frozen=True)
class Checkpoints:
    """The files of one experiment."""

    root: Path

    @property
    def folder(self) -> Path:
        """Where adapters and state lie."""
        return self.root / "lora_checkpoints"

    @property
    def state(self) -> Path:
        """The trainer's state; the one before it is kept as state.previous.pt."""
        return self.folder / "state.pt"

    @property
    def previous(self) -> Path:
        """The state before the newest."""
        return self.folder / "state.previous.pt"

    @property
    def best(self) -> Path:
        """The adapter of the lowest validation loss."""
        return self.folder / "best_lora.pt"

    @property
    def last(self) -> Path:
        """The newest adapter."""
        return self.folder / "last_lora.pt"

    @property
    def ema(self) -> Path:
        """The newest adapter's EMA."""
        return self.folder / "average_lora.pt"

    @property
    def single(self) -> Path:
        """The best adapter as a single file, named after the experiment."""
        return self.folder / f"{self.root.name}_lora.safetensors"

    def write_config(self, config: TrainConfig) -> None:
        """The resolved configuration, as YAML."""
        write_synced(self.root / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config.to_dict())).encode())

    def save(self, state: TrainState, inputs: RunInputs) -> None:
        """Write the state: temporary name, synced, renamed; at no moment is there none."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "origin": inputs.fixed_values(), "state": state.state_dict()}, buffer)
        if self.state.exists():
            temporary = temporary_path(self.previous)
            try:
                os.link(self.state, temporary)
            except OSError:  # no hard links there, as on FAT and some network folders
                shutil.copyfile(self.state, temporary)
            temporary.replace(self.previous)
        write_synced(self.state, buffer.getvalue())

    def load(self, state: TrainState, inputs: RunInputs) -> bool:
        """Continue from the saved state, False where there is none; TrainingError where it is of another run."""
        checkpoint = self._read_state()
        if checkpoint is None:
            return False
        differences = describe_differences(checkpoint["origin"], inputs.fixed_values())
        if differences:
            raise TrainingError(
                f"{self.root} holds a run of other settings ({differences}). "
                "Set them back, take another exp_id, or start over in a new folder with resume=false (of the pipeline: "
                "--from train)"
            )
        state.load_state_dict(checkpoint["state"])
        return True

    def _read_state(self) -> dict[str, Any] | None:
        if not self.state.exists():
            if self.previous.exists():
                raise TrainingError(
                    f"{self.state} is gone, {self.previous.name} is there; put it in its place, or start over in a new "
                    "folder with resume=false"
                )
            return None
        checkpoint: Any = None
        try:
            reason = find_damage(self.state)
            if not reason:
                checkpoint = torch.load(self.state, map_location="cpu", weights_only=True)
        except LOAD_ERRORS as error:
            reason = read_failure(error)
        if reason:
            raise TrainingError(
                f"{self.state} cannot be read ({reason}); put state.previous.pt in its place, or start over with "
                "resume=false"
            )
        is_state = isinstance(checkpoint, dict) and {"format", "origin", "state"} <= checkpoint.keys()
        if not is_state or checkpoint["format"] != FORMAT:
            raise TrainingError(
                f"{self.state} is no training state, or one of another version; start over with resume=false"
            )
        state: dict[str, Any] = checkpoint
        return state

    def save_adapter(self, path: Path, state: TrainState, inputs: RunInputs, ema: bool = False) -> None:
        """Write the adapter, or its EMA, with its settings, base model, targets and data."""
        config = {name: value for name, value in inputs.config.to_dict().items() if name not in LOCATION_KEYS}
        with state.use_ema(ema):
            weights = adapter_state(state.model)
        adapter = AdapterFile(
            saved_lora_config(state.model, inputs.config.lora.in_phase(state.phase)),
            weights,
            inputs.config.model,
            inputs.base_sha256,
            targets=state.targets,
            step=state.step,
            config=config,
            data=inputs.data_summary(),
        )
        write_adapter(path, adapter)
