"""Adapter files: what training writes and everything else reads.

Every adapter is written twice: as `NAME.pt`, which describes itself (settings, base model and its hash, data, step),
and as the folder `NAME/` that peft and its tools read (`adapter_config.json`, `adapter_model.safetensors`).
`read_adapter` takes either, or the safetensors file itself.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.model.lora import LoRAConfig, add_lora, load_adapter_state
from mmaudio.model.networks import MMAudio

FORMAT = 1
CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
"""The names that peft gives the files of its folders."""
_HEADER = "mmaudio"


@dataclass(frozen=True)
class AdapterFile:
    """An adapter and what it was made from."""

    lora: LoRAConfig
    """The settings, with the targets' patterns."""
    state: dict[str, Tensor]
    """Weights under PEFT's keys."""
    base_model: str
    base_sha256: str
    """Hash of the base network's file, empty where it is not known."""
    targets: list[str] = field(default_factory=list)
    """The adapted modules' names."""
    step: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    """The whole training configuration, without the places on disk."""
    data: dict[str, Any] = field(default_factory=dict)
    """Counts and ids of the clips it was trained on."""

    def described(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        rest = {name: getattr(self, name) for name in ("targets", "step", "config", "data")}
        base = {"base_model": self.base_model, "base_sha256": self.base_sha256}
        return {"format": FORMAT, "lora": asdict(self.lora), **base, **rest}


def write_adapter(path: Path, adapter: AdapterFile) -> None:
    """Write `path` (NAME.pt) and the folder NAME beside it; each is whole or not there. Same input, same bytes."""
    if path.suffix != ".pt":
        raise ConfigError(f"{path}: an adapter file is called NAME.pt")
    state = {key: value.detach().cpu().contiguous() for key, value in adapter.state.items()}
    buffer = io.BytesIO()
    torch.save({**adapter.described(), "adapter": state}, buffer)
    write_whole(path, buffer.getvalue())
    folder = path.with_suffix("")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    settings = LoraConfig(
        r=adapter.lora.rank,
        lora_alpha=adapter.lora.alpha,
        lora_dropout=adapter.lora.dropout,
        target_modules=sorted(adapter.targets),
        bias="none",
        base_model_name_or_path=None,  # peft would look any name up on the Hugging Face hub
        inference_mode=True,
    )
    settings.save_pretrained(str(part))
    metadata = {"format": "pt", _HEADER: json.dumps(adapter.described(), sort_keys=True)}
    write_whole(part / WEIGHTS_NAME, save(state, metadata))
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it to the disk and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_adapter(path: Path) -> AdapterFile:
    """The adapter in a .pt file, a PEFT folder or a .safetensors file; WeightsError for anything else."""
    if not path.exists():
        raise WeightsError(f"{path}: no such adapter; training writes output/EXP_ID/lora_checkpoints/best_lora.pt")
    try:
        if path.is_dir() or path.suffix == ".safetensors":
            return _read_folder(path / WEIGHTS_NAME if path.is_dir() else path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return _from_description(stored, stored["adapter"])
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as an adapter ({error}); copy it again") from error
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: no adapter of this program or of peft ({error} is missing or odd)") from error


def _read_folder(weights: Path) -> AdapterFile:
    with safe_open(weights, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = file.metadata() or {}
    if _HEADER in metadata:
        return _from_description(json.loads(metadata[_HEADER]), state)
    peft = json.loads((weights.parent / CONFIG_NAME).read_text())
    targets = peft["target_modules"]
    if not isinstance(targets, list):
        raise WeightsError(f"{weights.parent}: target_modules is {targets!r}; a list of names is expected")
    lora = LoRAConfig(peft["r"], float(peft["lora_alpha"]), peft["lora_dropout"], targets)
    return AdapterFile(lora, state, peft["base_model_name_or_path"] or "", "", targets)


def _from_description(stored: dict[str, Any], state: dict[str, Tensor]) -> AdapterFile:
    if stored["format"] != FORMAT:
        raise WeightsError(f"adapter file of format {stored['format']}; this version reads {FORMAT}")
    rest = {name: stored[name] for name in ("base_model", "base_sha256", "targets", "step", "config", "data")}
    return AdapterFile(LoRAConfig(**stored["lora"]), state, **rest)


def attach(network: MMAudio, adapter: AdapterFile, model: str, base_sha256: str = "") -> PeftModel:
    """Add the adapter to a loaded base network `model`, in place, ready to compute with (dropout off).

    Raises WeightsError as `check_base` does, and where the weights do not fit.
    """
    check_base(adapter, model, base_sha256)
    adapted = add_lora(network, LoRAConfig(**{**asdict(adapter.lora), "target_modules": adapter.targets}))
    load_adapter_state(adapted, adapter.state)
    adapted.eval()
    return adapted


def check_base(adapter: AdapterFile, model: str, base_sha256: str = "") -> None:
    """WeightsError where it was made for another base model or, with `base_sha256` given, for another file of it."""
    if adapter.base_model and adapter.base_model != model:
        raise WeightsError(f"the adapter was made for {adapter.base_model}, not for {model}; name that model")
    if base_sha256 and adapter.base_sha256 and base_sha256 != adapter.base_sha256:
        raise WeightsError(
            f"the adapter was trained on another file of {model} (SHA-256 {adapter.base_sha256[:12]}..., here "
            f"{base_sha256[:12]}...); use that file, or train again"
        )
