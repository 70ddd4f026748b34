"""The experiment's folder: the state to resume from, the adapters, and whether an old state still means anything.

output/<exp_id>/config.yaml
output/<exp_id>/lora_checkpoints/state.pt, state.previous.pt     the trainer's own
output/<exp_id>/lora_checkpoints/best_lora.pt, last_lora.pt      and a PEFT folder beside each
output/<exp_id>/lora_checkpoints/average_lora.pt                 the running average of the last one
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from mmaudio.config import TrainConfig, flat
from mmaudio.data.feature_store import ClipSet
from mmaudio.errors import TrainingError
from mmaudio.finetune.state import TrainState
from mmaudio.lora.adapter import adapter_state, saved_config
from mmaudio.lora.checkpoint import AdapterFile, write_adapter, write_whole
from mmaudio.model.state_dict import why_not
from mmaudio.utils.checksums import damage

FORMAT = 2
PLACES = ("output_dir", "clips_tsv", "features_dir", "weights", "offline", "video_root", "device", "resume")
"""Settings that say where, not what; adapter files leave them out."""
FREE = (
    *PLACES,
    "exp_id",
    "max_steps",
    "lora.max_steps",
    "eval_every",
    "save_every",
    "batch_size",
    "gradient_accumulation_steps",
    "amp",
    "base_bf16",
    "gradient_checkpointing",
    "compile",
    "cuda_graph",
    "features_in_memory",
    "logging.",
    "early_stopping.",
)
"""Settings (and groups of them) that may change when a run continues."""


@dataclass(frozen=True)
class Origin:
    """What a run is made from: settings, base weights, clips."""

    config: TrainConfig
    base_sha256: str
    train: ClipSet
    held_out: ClipSet | None

    def described(self) -> dict[str, Any]:
        """Everything that a state depends on, by name, as plain values."""
        found = {name: value for name, value in flat(self.config.plain()).items() if not name.startswith(FREE)}
        return found | {
            "clips per step": self.config.effective_batch,
            "base weights": self.base_sha256,
            "training clips": fingerprint(self.train),
            "validation clips": "none" if self.held_out is None else fingerprint(self.held_out),
        }

    def data(self) -> dict[str, Any]:
        """What an adapter file says of its data."""
        found: dict[str, Any] = {"seconds": self.train.seconds}
        for name, part in (("train", self.train), ("validation", self.held_out)):
            ids, videos = ([], []) if part is None else (part.ids, sorted(set(part.videos)))
            found[name] = {"clips": len(ids), "videos": videos, "ids": ids}
        return found


def fingerprint(clips: ClipSet) -> str:
    """The number of clips and a hash of their ids, captions and latents."""
    digest, latents = hashlib.sha256(repr((clips.ids, clips.captions)).encode()), clips.stored().column("mean")
    for number in range(len(clips)):
        digest.update(latents[torch.tensor([number])].cpu().numpy().tobytes())
    return f"{len(clips)} ({digest.hexdigest()[:12]})"


def experiment_folder(config: TrainConfig) -> Path:
    """`output_dir/exp_id`, or with resume=false and adapters or a state in it the next free one: `exp_id-2`, ..."""
    folder = Path(config.output_dir) / config.exp_id
    if config.resume or not Checkpoints(folder).folder.exists():
        return folder
    number = 2
    while Checkpoints(folder.with_name(f"{folder.name}-{number}")).folder.exists():
        number += 1
    return folder.with_name(f"{folder.name}-{number}")


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
    def average(self) -> Path:
        """The newest adapter's running average."""
        return self.folder / "average_lora.pt"

    def write_config(self, config: TrainConfig) -> None:
        """The resolved configuration, as YAML."""
        write_whole(self.root / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config.plain())).encode())

    def save(self, state: TrainState, origin: Origin) -> None:
        """Write the state: temporary name, synced, renamed; at no moment is there none."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "origin": origin.described(), "state": state.state_dict()}, buffer)
        if self.state.exists():
            spare = self.folder / ".state.previous.part"
            spare.unlink(missing_ok=True)
            try:
                os.link(self.state, spare)
            except OSError:  # no such links there, as on FAT and some network folders
                shutil.copyfile(self.state, spare)
            spare.replace(self.previous)
        write_whole(self.state, buffer.getvalue())

    def load(self, state: TrainState, origin: Origin) -> bool:
        """Continue from the saved state, False where there is none; TrainingError where it is of another run."""
        stored = self._read()
        if stored is None:
            return False
        new = origin.described()
        old = {name: value for name, value in flat(TrainConfig().plain()).items() if name in new} | stored["origin"]
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed:
            listed = "; ".join(f"{name}: {old.get(name)}, now {new.get(name)}" for name in changed)
            if any(name.endswith(" clips") for name in changed):
                listed += "; videos, captions or how they are cut have changed"
            raise TrainingError(
                f"{self.root} holds a run of other settings ({listed}). "
                "Set them back, take another exp_id, or start over in a new folder with resume=false (of the pipeline: "
                "--from train)"
            )
        state.load_state_dict(stored["state"])
        return True

    def _read(self) -> dict[str, Any] | None:
        if not self.state.exists():
            if self.previous.exists():
                raise TrainingError(
                    f"{self.state} is gone, {self.previous.name} is there; put it in its place, or start over in a new "
                    "folder with resume=false"
                )
            return None
        try:
            why, stored = damage(self.state), None
            if not why:
                stored = torch.load(self.state, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            why = why_not(error)
        if why:
            raise TrainingError(
                f"{self.state} cannot be read ({why}); put state.previous.pt in its place, or start over with "
                "resume=false"
            )
        if not isinstance(stored, dict) or stored.get("format") != FORMAT or not {"origin", "state"} <= stored.keys():
            raise TrainingError(
                f"{self.state} is no state of training, or of another version; start over with resume=false"
            )
        return stored

    def save_adapter(self, path: Path, state: TrainState, origin: Origin, averaged: bool = False) -> None:
        """Write the adapter, or its running average, with all that it was made from."""
        config = {name: value for name, value in origin.config.plain().items() if name not in PLACES}
        with state.averaged(averaged):
            weights = adapter_state(state.model)
        adapter = AdapterFile(
            saved_config(state.model, origin.config.lora.in_phase(state.phase)),
            weights,
            origin.config.model,
            origin.base_sha256,
            targets=state.targets,
            step=state.step,
            config=config,
            data=origin.data(),
        )
        write_adapter(path, adapter)
