"""Initial adapter of a run (`init_from`): read and checked before anything else, and the lineage that it begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmaudio.config import TrainConfig
from mmaudio.data.clip_table import read_clips
from mmaudio.data.clips import Clip
from mmaudio.data.trained_clips import find_trained_clips
from mmaudio.errors import DataError
from mmaudio.lora.adapter_start import check_start
from mmaudio.lora.checkpoint import AdapterFile, adapter_files, check_base, check_fit, read_adapter
from mmaudio.lora.hub_adapter import fetch_adapter
from mmaudio.model.networks import build_network
from mmaudio.weights.store import file_sha256


@dataclass(frozen=True)
class InitialAdapter:
    """The adapter from which a run starts."""

    path: Path
    adapter: AdapterFile
    sha256: str
    """Hash of the file of its weights."""

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """This adapter and those before it, newest first: file, hash, step and training clips, as plain values."""
        adapter = self.adapter
        training = dict(adapter.data.get("train", {}))
        entry = {"file": self.path.name, "sha256": self.sha256, "step": adapter.step, "train": training}
        return [{**entry, "exp_id": str(adapter.config.get("exp_id", ""))}, *adapter.lineage]


def start_name(config: TrainConfig) -> str:
    """What a run starts from, in words."""
    return "base model" if config.init_from is None else "adapter that it began with"


def load_initial_adapter(config: TrainConfig) -> InitialAdapter | None:
    """Read and check the adapter that `init_from` names; None where it names none.

    Raises WeightsError where it cannot be read or is for another base model, ConfigError as `check_start`.
    """
    if config.init_from is None:
        return None
    path = Path(config.init_from)
    fetch_adapter(path, config.offline)
    adapter = read_adapter(path)
    check_base(adapter, config.model)
    with torch.device("meta"):
        network = build_network(config.model)
    check_fit(adapter, network, config.model)
    check_start(adapter, network, config.lora)
    return InitialAdapter(path, adapter, file_sha256(adapter_files(path)[0]))


def check_held_out(initial: InitialAdapter, config: TrainConfig, validation: Iterable[Clip]) -> None:
    """Raise DataError where clips that are held out, for validation or the test, were trained on before."""
    clips = read_clips(Path(config.clips_tsv)) if config.custom_finetune else []
    held_out = [*validation, *(clip for clip in clips if clip.split == "test")]
    divided = {clip.video for clip in clips if clip.split == "train"}
    trainings = [ancestor.get("train", {}) for ancestor in initial.lineage]
    _, refused = find_trained_clips(held_out, trainings, divided)
    if refused:
        raise DataError(
            f"init_from: {initial.path} was trained on videos that are held out here ({len(refused)} clips, as "
            f"{sorted(refused)[0]}): nothing could be compared on them. Give them the split `train` in "
            f"{config.clips_tsv}; with the --output of the first training, videos stay in their splits. Rename videos "
            "that are others of the same name"
        )
