"""Adapter files: what training writes and everything else reads.

Every adapter is written twice: as `NAME.pt`, which describes itself (settings, base model and its hash, data, step),
and as the folder `NAME/` that peft and its tools read (`adapter_config.json`, `adapter_model.safetensors`).
`read_adapter` takes either, the safetensors file itself, and folders that peft wrote without us. What peft calls its
configuration is the truth about how an adapter computes; what else we know of it is beside that.

What full fine-tuning (`lora.enabled=false`) gives is written as NAME.pt alone, with all weights in the place of an
adapter's, and read like one.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora.adapter import add_lora, inject, load_adapter_state, peft_settings
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_compat import adapted_modules, likely_models, lora_settings, lora_weights, misfits, shapes_of
from mmaudio.lora.targets import layer_settings
from mmaudio.model.networks import MMAudio
from mmaudio.model.spec import MODELS
from mmaudio.model.state_dict import check_keys, why_not
from mmaudio.utils.checksums import damage
from mmaudio.utils.files import writing

FORMAT = 1
CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
"""The names that peft gives the files of its folders."""
PICKLED_NAME = "adapter_model.bin"
"""The weights' name where peft was told not to write safetensors."""
_HEADER = "mmaudio"


@dataclass(frozen=True)
class AdapterFile:
    """An adapter and what it was made from."""

    lora: LoRAConfig
    """The settings, with the targets' patterns."""
    state: dict[str, Tensor]
    """Weights under PEFT's keys; of full fine-tuning all weights, under the released ones."""
    base_model: str
    """Named in the file, or the only one that its shapes fit; empty where several do."""
    base_sha256: str
    """Hash of the base network's file, empty where it is not known."""
    targets: list[str] = field(default_factory=list)
    """The adapted modules' names."""
    step: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    """The whole training configuration, without the places on disk."""
    data: dict[str, Any] = field(default_factory=dict)
    """Counts and ids of the clips it was trained on."""
    likely: tuple[str, ...] = ()
    """The base models whose shapes these are, where the file names none."""

    def described(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        rest = {name: getattr(self, name) for name in ("targets", "step", "config", "data")}
        base = {"base_model": self.base_model, "base_sha256": self.base_sha256}
        return {"format": FORMAT, "lora": asdict(self.lora), **base, **rest}


def write_adapter(path: Path, adapter: AdapterFile) -> None:
    """Write `path` (NAME.pt) and the folder NAME beside it; each is whole or not there. Same input, same bytes.

    Of full fine-tuning there is no folder: peft has no form for it.
    """
    if path.suffix != ".pt":
        raise ConfigError(f"{path}: an adapter file is called NAME.pt")
    state = {key: value.detach().cpu().contiguous() for key, value in adapter.state.items()}
    config = _peft_config(adapter) if adapter.lora.enabled else {}
    buffer = io.BytesIO()
    torch.save({**adapter.described(), "peft": config, "adapter": state}, buffer)
    write_whole(path, buffer.getvalue())
    if adapter.lora.enabled:
        _write_folder(path.with_suffix(""), adapter, config, state)


def _write_folder(folder: Path, adapter: AdapterFile, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_whole(part / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True).encode())
    metadata = {"format": "pt", _HEADER: json.dumps(adapter.described(), sort_keys=True)}
    write_whole(part / WEIGHTS_NAME, _sorted_header(save(state, metadata)))
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def _peft_config(adapter: AdapterFile) -> dict[str, Any]:
    """What `adapter_config.json` holds; without a base's name, which peft would look up on the Hugging Face hub."""
    settings = peft_settings(adapter.lora, adapter.targets).to_dict()
    settings |= {"target_modules": sorted(adapter.targets), "inference_mode": True}
    config: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True))
    return config


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with its header sorted by name; the library writes the metadata in an order that changes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it to the disk and rename it."""
    with replacing(path) as part:
        part.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write; afterwards synced to the disk and renamed to `path`, or gone where writing failed.

    Raises MMAudioError for what the system has against writing there.
    """
    with writing(path) as part:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())


def size_on_disk(path: Path) -> int:
    """Bytes of an adapter: of the file, or of all files of the folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def files_of(path: Path) -> list[Path]:
    """What `read_adapter` reads: the weights, and peft's settings where they are beside them; WeightsError for none."""
    weights = _weights_in(path)
    beside = weights.parent / CONFIG_NAME
    return [weights, beside] if beside.is_file() else [weights]


def read_adapter(path: Path) -> AdapterFile:
    """The adapter in a .pt file, a PEFT folder or a .safetensors file; WeightsError for anything else."""
    if not path.exists():
        raise WeightsError(f"{path}: no such adapter; training writes output/EXP_ID/lora_checkpoints/best_lora.pt")
    try:
        return _read_peft(_weights_in(path)) if path.is_dir() or path.suffix == ".safetensors" else _read_pt(path)
    except (ConfigError, WeightsError) as error:
        raise WeightsError(f"{path}: {error}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as an adapter ({why_not(error)}); copy it again") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: no adapter of this program or of peft ({error} is missing or odd)") from error


def _weights_in(path: Path) -> Path:
    """The weights file of a PEFT folder, or the file itself."""
    if path.is_file():
        return path
    for name in (WEIGHTS_NAME, PICKLED_NAME):
        if (path / name).is_file():
            return path / name
    inside = [*path.glob("best_lora.pt"), *path.glob("*/best_lora.pt")]
    inside += [found.parent for found in path.glob(f"*/{CONFIG_NAME}")]
    hint = f"; did you mean {inside[0]}?" if inside else ""
    raise WeightsError(f"holds neither {WEIGHTS_NAME} nor {PICKLED_NAME}{hint}")


def _read_peft(weights: Path) -> AdapterFile:
    if weights.suffix == ".safetensors":
        with safe_open(weights, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    else:
        state, metadata = torch.load(weights, map_location="cpu", weights_only=True), {}
    beside = weights.parent / CONFIG_NAME
    header = json.loads(metadata[_HEADER]) if _HEADER in metadata else None
    return _assemble(state, header, json.loads(beside.read_text("utf-8-sig")) if beside.is_file() else None)


def _read_pt(path: Path) -> AdapterFile:
    if broken := damage(path):
        raise OSError(broken)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(stored, dict):
        raise WeightsError(f"holds a {type(stored).__name__}, not an adapter")
    if "adapter" in stored:
        return _assemble(stored["adapter"], stored, stored.get("peft"))
    if {"origin", "state"} <= stored.keys():
        raise WeightsError("this is the trainer's own state; the adapters beside it are best_lora.pt and last_lora.pt")
    if stored and all(isinstance(value, Tensor) for value in stored.values()):
        return _read_peft(path)
    raise WeightsError(f"holds {', '.join(map(str, list(stored)[:3]))}, ...: no adapter of this program or of peft")


def _assemble(state: Mapping[str, Tensor], header: dict[str, Any] | None, peft: dict[str, Any] | None) -> AdapterFile:
    """An adapter from its weights, our description of it and peft's, of which one may be missing."""
    whole = header is not None and not header.get("lora", {}).get("enabled", True)
    if "audio_input_proj.0.weight" in state and not whole:
        raise WeightsError(
            "this is a whole network, not an adapter: as one of the files in a folder of weights it is found"
        )
    state = dict(state) if whole else lora_weights(state)
    if header is None and peft is None:
        raise WeightsError(f"nothing says its lora_alpha: put peft's {CONFIG_NAME} beside it")
    if header is None:
        assert peft is not None
        return _foreign(state, peft)
    if header["format"] != FORMAT:
        raise WeightsError(f"an adapter file of format {header['format']}; this version reads {FORMAT}")
    lora = LoRAConfig(**header["lora"])
    if peft:
        lora = _as_peft_says(lora, lora_settings(peft, header["targets"]), header["targets"])
    rest = {name: header[name] for name in ("base_model", "base_sha256", "targets", "step", "config", "data")}
    return AdapterFile(lora, state, **rest)


def _as_peft_says(ours: LoRAConfig, theirs: LoRAConfig, targets: list[str]) -> LoRAConfig:
    """Their settings, with our patterns where those mean the same."""
    kept = ["target_modules", "extra_targets", "max_steps"]
    if layer_settings(ours, targets) == layer_settings(theirs, targets):
        kept += ["rank", "alpha", "rank_pattern", "alpha_pattern"]
    return dataclasses.replace(theirs, **{name: getattr(ours, name) for name in kept})


def _foreign(state: dict[str, Tensor], peft: dict[str, Any]) -> AdapterFile:
    """An adapter that peft wrote without us. The names of its weights say on which layers it is: peft's target_modules
    may be a regular expression, or ends of names."""
    targets = adapted_modules(state)
    lora = lora_settings(peft, targets)
    base = PurePosixPath(peft.get("base_model_name_or_path") or "").stem.removeprefix("mmaudio_")
    likely = [] if base in MODELS else likely_models(state)
    named = base if base in MODELS else likely[0] if len(likely) == 1 else ""
    return AdapterFile(lora, state, named, "", targets, likely=tuple(likely))


def attach(network: MMAudio, adapter: AdapterFile, model: str, base_sha256: str = "") -> nn.Module:
    """Add the adapter to a loaded base network `model`, in place, ready to compute with (dropout off).

    Raises WeightsError as `check_base` and `check_fit` do.
    """
    check_base(adapter, model, base_sha256)
    check_fit(adapter, network, model)
    if adapter.lora.enabled:
        adapted = inject(network, adapter.lora, adapted_modules(adapter.state))
    else:
        adapted = add_lora(network, adapter.lora)
    load_adapter_state(adapted, adapter.state)
    adapted.eval()
    return adapted


def check_base(adapter: AdapterFile, model: str, base_sha256: str = "") -> None:
    """WeightsError where it was made for another base model or, with `base_sha256` given, for another file of it."""
    if adapter.likely and model not in adapter.likely:
        raise WeightsError(
            f"the adapter does not fit {model}: {shapes_of(adapter.likely)}. Name that model; where the adapter is for "
            f"some blocks of {model} only, say so as base_model_name_or_path in {CONFIG_NAME}"
        )
    if adapter.base_model and adapter.base_model != model:
        raise WeightsError(f"the adapter was made for {adapter.base_model}, not for {model}; name that model")
    if base_sha256 and adapter.base_sha256 and base_sha256 != adapter.base_sha256:
        raise WeightsError(
            f"the adapter was trained on another file of {model} (SHA-256 {adapter.base_sha256[:12]}..., here "
            f"{base_sha256[:12]}...); use that file, or train again"
        )


def check_fit(adapter: AdapterFile, network: nn.Module, model: str) -> None:
    """WeightsError where its layers are not those of the network `model`, which may be on the meta device."""
    if not adapter.lora.enabled:
        check_keys(dict(network.named_parameters()), adapter.state, f"fully fine-tuned {model}")
        return
    wrong = misfits(network, adapter.state)
    if wrong:
        known = likely_models(adapter.state)
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        why = f"{shapes_of(known)}; name that model" if known else f"{wrong[0]}{more}; is it for another model?"
        raise WeightsError(f"the adapter does not fit {model}: {why}")
