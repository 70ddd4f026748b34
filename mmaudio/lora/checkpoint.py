"""Adapter files: writing, reading, checking and attaching to a base network.

Every adapter is written twice: as `NAME.pt` with its metadata (settings, base model and its hash, data, step), and as
the folder `NAME/` in peft's format (`adapter_config.json`, `adapter_model.safetensors`). `read_adapter` reads either,
the safetensors file itself, and folders that peft alone wrote. Where both are present, peft's configuration decides how
the adapter computes, and the metadata adds the rest. NAME.pt names the clips and videos; the folder has hashes of them.

Full fine-tuning (`lora.enabled=false`) is written as NAME.pt alone, with all weights instead of an adapter's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora.adapter import add_lora, inject_adapter, load_adapter_state, peft_settings
from mmaudio.lora.clip_names import hash_names, hide_files
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.hub_adapter import find_adapter
from mmaudio.lora.peft_compat import (
    adapted_modules,
    check_ranks,
    check_values,
    describe_shapes,
    find_misfits,
    find_possible_models,
    lora_settings,
    lora_weights,
    read_peft_config,
)
from mmaudio.lora.targets import layer_settings
from mmaudio.model.networks import MMAudio
from mmaudio.model.spec import MODELS
from mmaudio.model.state_dict import LOAD_ERRORS, check_keys, read_failure
from mmaudio.utils.checksums import find_damage
from mmaudio.utils.files import atomic_folder, atomic_write
from mmaudio.utils.tensor_checksum import tensors_sha256
from mmaudio.utils.terminal import print_lines

FORMAT = 1
CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
"""File names of peft's folders."""
PICKLED_NAME = "adapter_model.bin"
"""File name of the weights if peft was called with safe_serialization=False."""
_HEADER, _CHECKSUMS = "mmaudio", "mmaudio_checksums"
"""Entries of the metadata of adapter_model.safetensors. Files of other programs, and of 0.1.0, have no checksums."""


@dataclass(frozen=True)
class AdapterFile:
    """An adapter with its metadata."""

    lora: LoRAConfig
    """Settings, with the patterns of the targets."""
    state: dict[str, Tensor]
    """Weights under PEFT's keys; of full fine-tuning, all weights under the released keys."""
    base_model: str
    """Named in the file, or the only model that its shapes fit; empty if several fit."""
    base_sha256: str
    """Hash of the base network's file; empty if unknown."""
    targets: list[str] = field(default_factory=list)
    """Names of the adapted modules."""
    step: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    """The training configuration without paths."""
    data: dict[str, Any] = field(default_factory=dict)
    """Counts and ids of the training clips."""
    possible_models: tuple[str, ...] = ()
    """Base models that its shapes fit, if the file names none."""

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The adapters that training started from, newest first, each with its file, hash, step and training clips."""
        return list(self.data.get("lineage", []))

    def metadata(self) -> dict[str, Any]:
        """Everything but the weights as plain values, as stored in the file."""
        training = {name: getattr(self, name) for name in ("targets", "step", "config", "data")}
        base = {"base_model": self.base_model, "base_sha256": self.base_sha256}
        return {"format": FORMAT, "lora": asdict(self.lora), **base, **training}


def write_adapter(path: Path, adapter: AdapterFile) -> None:
    """Write `path` (NAME.pt) and the folder NAME beside it, each atomically. The same input gives the same bytes.

    Full fine-tuning has no folder, since peft has no format for it.
    """
    if path.suffix != ".pt":
        raise ConfigError(f"{path}: the file name of an adapter ends in .pt")
    state = {key: value.detach().cpu().contiguous() for key, value in adapter.state.items()}
    config = peft_config(adapter) if adapter.lora.enabled else {}
    buffer = io.BytesIO()
    torch.save({**adapter.metadata(), "peft": config, "adapter": state}, buffer)
    write_synced(path, buffer.getvalue())
    if adapter.lora.enabled:
        with atomic_folder(path.with_suffix("")) as folder:
            write_peft_files(folder, adapter)


def write_peft_files(folder: Path, adapter: AdapterFile) -> None:
    """Write the adapter as peft's two files into an existing folder. Not for full fine-tuning."""
    settings = json.dumps(peft_config(adapter), indent=2, sort_keys=True).encode()
    checksums = {CONFIG_NAME: hashlib.sha256(settings).hexdigest()}
    write_synced(folder / CONFIG_NAME, settings)
    write_synced(folder / WEIGHTS_NAME, pack_weights(adapter.state, shared_metadata(adapter), {}, checksums))


def shared_metadata(adapter: AdapterFile) -> dict[str, Any]:
    """The metadata for files that may leave the machine: hashes in place of the names of videos and clips."""
    return {**adapter.metadata(), "data": hash_names(adapter.data), "config": hide_files(adapter.config)}


def pack_weights(
    state: dict[str, Tensor],
    header: Mapping[str, Any],
    card: Mapping[str, str],
    checksums: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """A safetensors file with our header, a card for other programs, and checksums, also of the files beside it.

    The same input gives the same bytes.
    """
    metadata = {"format": "pt", _HEADER: json.dumps(header, sort_keys=True), **card}
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    metadata[_CHECKSUMS] = json.dumps({**checksums, "all else": tensors_sha256(state, metadata)}, sort_keys=True)
    return _sort_header(save(state, metadata))


def restore_folder(path: Path) -> bool:
    """Write the PEFT folder beside the adapter file `path` again where it is gone or damaged; False where it is whole.

    Raises WeightsError where the file itself cannot be read.
    """
    adapter = read_adapter(path)
    folder = path.with_suffix("")
    if not adapter.lora.enabled:
        return False
    with suppress(WeightsError):
        read_adapter(folder)
        return False
    with atomic_folder(folder) as temporary:
        write_peft_files(temporary, adapter)
    return True


def peft_config(adapter: AdapterFile) -> dict[str, Any]:
    """Content of `adapter_config.json`, without a base model name, which peft would look up on the Hugging Face hub."""
    settings = peft_settings(adapter.lora, adapter.targets).to_dict()
    settings |= {"target_modules": sorted(adapter.targets), "inference_mode": True}
    config: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True))
    return config


def _sort_header(content: bytes) -> bytes:
    """Sort the header of a safetensors file by name; the library writes the metadata in a varying order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


def write_synced(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it to the disk and rename it."""
    with replace_synced(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replace_synced(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is synced to the disk and renamed to `path`, or removed if writing fails.

    Raises MMAudioError where the system refuses to write.
    """
    with atomic_write(path) as temporary:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())


def size_on_disk(path: Path) -> int:
    """Size of an adapter in bytes: of the file, or of all files in the folder."""
    path = find_adapter(path)
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def adapter_files(path: Path) -> list[Path]:
    """Files that `read_adapter` reads: the weights, and peft's settings if present; WeightsError if there are none."""
    weights = _find_weights(find_adapter(path))
    peft_config = weights.parent / CONFIG_NAME
    return [weights, peft_config] if peft_config.is_file() else [weights]


def read_adapter(path: Path) -> AdapterFile:
    """Read the adapter in a .pt file, a PEFT folder or a .safetensors file; WeightsError for anything else.

    Of a name on the hub, USER/NAME[@REVISION], that in the hub's cache.
    """
    try:
        place = find_adapter(path)
        if not place.exists():
            raise WeightsError("no such adapter; training writes output/EXP_ID/lora_checkpoints/best_lora.pt")
        if not place.is_dir() and not place.is_file():  # opening a pipe waits for ever
            raise WeightsError("neither a file nor a folder")
        is_peft = place.is_dir() or place.suffix == ".safetensors"
        return _read_peft(_find_weights(place)) if is_peft else _read_pt(place)
    except (ConfigError, WeightsError) as error:
        raise WeightsError(f"{path}: {error}") from error
    except (OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as an adapter ({read_failure(error)}); copy it again") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: not an adapter of this program or of peft ({error} is missing or invalid)"
        ) from error


def _find_weights(path: Path) -> Path:
    """Weights file of a PEFT folder, or the file itself."""
    if path.is_file():
        return path
    for name in (WEIGHTS_NAME, PICKLED_NAME):
        if (path / name).is_file():
            return path / name
    candidates = [*path.glob("best_lora.pt"), *path.glob("*/best_lora.pt")]
    candidates += [peft_config.parent for peft_config in path.glob(f"*/{CONFIG_NAME}")]
    hint = f"; did you mean {candidates[0]}?" if candidates else ""
    raise WeightsError(f"holds neither {WEIGHTS_NAME} nor {PICKLED_NAME}{hint}")


def _read_peft(weights: Path) -> AdapterFile:
    if weights.suffix == ".safetensors":
        with safe_open(weights, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    else:
        state, metadata = _load_pickled(weights), {}
    checksums = json.loads(metadata.pop(_CHECKSUMS, "{}"))
    if checksums and checksums["all else"] != tensors_sha256(state, metadata):
        raise OSError("its checksum is wrong")
    header = json.loads(metadata[_HEADER]) if _HEADER in metadata else None
    config_path = weights.parent / CONFIG_NAME
    if header is not None and "peft" in header:  # a file that stands alone: what lies beside it is another's
        return _build_adapter(state, header, header["peft"])
    adapter = _build_adapter(state, header, read_peft_config(config_path))
    if CONFIG_NAME in checksums and config_path.is_file():
        _report_edits(config_path, checksums[CONFIG_NAME], adapter)
    return adapter


def _report_edits(config_path: Path, sha256: str, adapter: AdapterFile) -> None:
    """Print a note where peft's settings are not those that were written with the weights: edited, or damaged."""
    if hashlib.sha256(config_path.read_bytes()).hexdigest() != sha256:
        print_lines(
            f"note: {config_path} is not as it was written with the weights beside it. Its settings are used: rank "
            f"{adapter.lora.rank}, alpha {adapter.lora.alpha:g}. If nobody edited it, it is damaged: copy the folder "
            "again",
            file=sys.stderr,
            flush=True,
        )


def _load_pickled(path: Path) -> Any:
    """What torch.save wrote, intact."""
    if problem := find_damage(path):
        raise OSError(problem)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        raise OSError(read_failure(error)) from error


def _read_pt(path: Path) -> AdapterFile:
    stored = _load_pickled(path)
    if not isinstance(stored, dict):
        raise WeightsError(f"holds a {type(stored).__name__}, not an adapter")
    if "adapter" in stored:
        return _build_adapter(stored["adapter"], stored, stored.get("peft"))
    if {"origin", "state"} <= stored.keys():
        raise WeightsError("this is the training state; the adapters beside it are best_lora.pt and last_lora.pt")
    if stored and all(isinstance(value, Tensor) for value in stored.values()):
        return _read_peft(path)
    raise WeightsError(f"holds {', '.join(map(str, list(stored)[:3]))}, ...: not an adapter of this program or of peft")


def _build_adapter(
    state: Mapping[str, Tensor], header: dict[str, Any] | None, peft: dict[str, Any] | None
) -> AdapterFile:
    """Combine weights, metadata and peft's configuration, one of which may be missing, to an adapter."""
    full_finetuning = header is not None and not header.get("lora", {}).get("enabled", True)
    if "audio_input_proj.0.weight" in state and not full_finetuning:
        raise WeightsError("this is a whole network, not an adapter: put it into the folder of weights")
    if full_finetuning:
        check_values(state)
    state = dict(state) if full_finetuning else lora_weights(state)
    if header is None and peft is None:
        raise WeightsError(f"its lora_alpha is unknown: put peft's {CONFIG_NAME} beside it")
    if header is None:
        assert peft is not None
        adapter = _from_peft_alone(state, peft)
        check_ranks(adapter.lora, state)
        return adapter
    if header["format"] != FORMAT:
        raise WeightsError(f"an adapter file of format {header['format']}; this version reads {FORMAT}")
    lora = LoRAConfig(**header["lora"])
    if not full_finetuning and sorted(header["targets"]) != adapted_modules(state):
        raise WeightsError(f"has matrices of {len(adapted_modules(state))} layers, its targets are others")
    if peft:
        lora = _merge_settings(lora, lora_settings(peft, header["targets"]), header["targets"])
    if not full_finetuning:
        check_ranks(lora, state)
    metadata = {name: header[name] for name in ("base_model", "base_sha256", "targets", "step", "config", "data")}
    return AdapterFile(lora, state, **metadata)


def _merge_settings(ours: LoRAConfig, peft: LoRAConfig, targets: list[str]) -> LoRAConfig:
    """peft's settings, with our patterns if they are equivalent."""
    names = ["target_modules", "extra_targets", "max_steps"]
    if layer_settings(ours, targets) == layer_settings(peft, targets):
        names += ["rank", "alpha", "rank_pattern", "alpha_pattern"]
    return dataclasses.replace(peft, **{name: getattr(ours, name) for name in names})


def _from_peft_alone(state: dict[str, Tensor], peft: dict[str, Any]) -> AdapterFile:
    """An adapter that peft alone wrote; the names of its weights give the target layers.

    peft's target_modules may be a regular expression or ends of names.
    """
    targets = adapted_modules(state)
    lora = lora_settings(peft, targets)
    base = PurePosixPath(peft.get("base_model_name_or_path") or "").stem.removeprefix("mmaudio_")
    possible_models = [] if base in MODELS else find_possible_models(state)
    base_model = base if base in MODELS else possible_models[0] if len(possible_models) == 1 else ""
    return AdapterFile(lora, state, base_model, "", targets, possible_models=tuple(possible_models))


def attach_adapter(network: MMAudio, adapter: AdapterFile, model: str, base_sha256: str = "") -> nn.Module:
    """Add the adapter to the loaded network of the base model in place, in eval mode.

    Raises WeightsError as `check_base` and `check_fit` do.
    """
    check_base(adapter, model, base_sha256)
    check_fit(adapter, network, model)
    if adapter.lora.enabled:
        adapted = inject_adapter(network, adapter.lora, adapted_modules(adapter.state))
    else:
        adapted = add_lora(network, adapter.lora)
    load_adapter_state(adapted, adapter.state)
    adapted.eval()
    return adapted


def check_base(adapter: AdapterFile, model: str, base_sha256: str = "") -> None:
    """Raise WeightsError for an adapter of another base model or, with `base_sha256`, of another file of it."""
    if adapter.possible_models and model not in adapter.possible_models:
        raise WeightsError(
            f"the adapter does not fit {model}: {describe_shapes(adapter.possible_models)}. Name that model; if the "
            f"adapter is for some blocks of {model} only, set base_model_name_or_path in {CONFIG_NAME} to {model}"
        )
    if adapter.base_model and adapter.base_model != model:
        raise WeightsError(f"the adapter was made for {adapter.base_model}, not for {model}; name that model")
    if base_sha256 and adapter.base_sha256 and base_sha256 != adapter.base_sha256:
        raise WeightsError(
            f"the adapter was trained on another file of {model} (SHA-256 {adapter.base_sha256[:12]}..., here "
            f"{base_sha256[:12]}...); use that file, or train again"
        )


def check_fit(adapter: AdapterFile, network: nn.Module, model: str) -> None:
    """Raise WeightsError if the adapter's layers do not fit the network, which may be on the meta device."""
    if not adapter.lora.enabled:
        check_keys(dict(network.named_parameters()), adapter.state, f"fully fine-tuned {model}")
        return
    misfits = find_misfits(network, adapter.state)
    if misfits:
        possible_models = find_possible_models(adapter.state)
        count = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        reason = f"{misfits[0]}{count}; is it for another model?"
        if possible_models:
            reason = f"{describe_shapes(possible_models)}; name that model"
        raise WeightsError(f"the adapter does not fit {model}: {reason}")
