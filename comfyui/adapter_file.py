"""Reading of adapters: the one file that MMAudio-LoRA writes, and the file of a PEFT folder.

r rank, k kernel.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
"""File names of PEFT's folders."""
MAX_CONFIG_BYTES = 10_000_000
MAX_PATTERN = 500
_PREFIX = r"(?:base_model\.model\.)?"
_MATRIX = re.compile(_PREFIX + r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_MAGNITUDE = re.compile(_PREFIX + r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_BIAS = re.compile(_PREFIX + r"((?:(?!lora_).)+?)(?:\.base_layer)?\.bias")
_SETTINGS = {"alpha": "lora_alpha", "use_rslora": "use_rslora", "alpha_pattern": "alpha_pattern"}
"""PEFT's names of the settings in our header."""
_PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base weights as they are."""


class AdapterError(ValueError):
    """What is wrong with an adapter's file, or with its use on a model."""


@dataclass(frozen=True)
class LowRank:
    """The adapter of one layer."""

    a: Tensor  # (r, in) or (r, in, k)
    b: Tensor  # (out, r) or (out, r, 1)
    scale: float
    """Factor on B A."""
    magnitude: Tensor | None = None  # (out,), of DoRA


@dataclass(frozen=True)
class Adapter:
    """An adapter with what its file says of it."""

    name: str
    layers: dict[str, LowRank]
    biases: dict[str, Tensor]
    """Trained biases by the name of their layer."""
    base_model: str
    """Empty where the file does not say."""
    summary: str


def read_adapter(path: Path, name: str) -> Adapter:
    """Read the adapter in a .safetensors file, called `name` in messages; AdapterError for anything else."""
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            header = json.loads((file.metadata() or {}).get("mmaudio", "{}"))
        return _build_adapter(name, state, header, _read_config(path, header))
    except AdapterError as error:
        raise AdapterError(f"{name}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{name}: cannot be read ({error}); copy it again") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{name}: not an adapter of MMAudio-LoRA or of PEFT ({error!r})") from error


def _read_config(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's settings: from the file beside the weights, or from our header."""
    beside = path.with_name(CONFIG_NAME)
    if beside.is_file() and (path.name == WEIGHTS_NAME or not header):
        if beside.stat().st_size > MAX_CONFIG_BYTES:
            raise AdapterError(f"{CONFIG_NAME} beside it is too large for settings")
        settings: dict[str, Any] = json.loads(beside.read_text("utf-8-sig"))
    elif not header:
        raise AdapterError(f"its alpha is unknown: put PEFT's {CONFIG_NAME} beside it, both in a folder of their own")
    elif "peft" in header:
        settings = header["peft"]
    else:
        settings = {"peft_type": "LORA"} | {peft: header["lora"][ours] for ours, peft in _SETTINGS.items()}
        if settings["alpha_pattern"]:
            raise AdapterError(
                f"its layers have different alphas: copy {CONFIG_NAME} with it, both with their names into one folder"
            )
    if settings.get("peft_type") != "LORA" or settings.get("init_lora_weights") not in _PLAIN_INITIALIZATIONS:
        kind = f"peft_type {settings.get('peft_type')}, init_lora_weights {settings.get('init_lora_weights')}"
        raise AdapterError(f"{kind}: adapters of type LORA that leave the base weights as they are can be read")
    return settings


def _build_adapter(
    name: str, state: Mapping[str, Tensor], header: Mapping[str, Any], config: Mapping[str, Any]
) -> Adapter:
    matrices, magnitudes, biases = _sort_state(state)
    layers = {}
    for layer, halves in matrices.items():
        if halves.keys() != {"A", "B"}:
            raise AdapterError(f"{layer} has one of the two matrices only")
        a, b = halves["A"], halves["B"]
        if not (a.ndim == b.ndim >= 2 and b.shape[1] == len(a) and all(size == 1 for size in b.shape[2:])):
            raise AdapterError(f"the matrices of {layer} are {list(a.shape)} and {list(b.shape)}")
        scale = _find_alpha(layer, config) / (math.sqrt(len(a)) if config.get("use_rslora") else len(a))
        layers[layer] = LowRank(a, b, scale, magnitudes.get(layer))
    if not layers or magnitudes.keys() - layers.keys():
        raise AdapterError("it holds no A and B matrices" if not layers else "magnitudes without matrices")
    base = Path(config.get("base_model_name_or_path") or "").stem.removeprefix("mmaudio_")
    base_model = header.get("base_model") or base
    return Adapter(name, layers, biases, base_model, _summary(layers, header, base_model))


def _sort_state(
    state: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """Matrices, DoRA's magnitudes and biases by the name of their layer."""
    matrices: dict[str, dict[str, Tensor]] = {}
    magnitudes, biases = {}, {}
    if "audio_input_proj.0.weight" in state:
        raise AdapterError("this is a whole model: put it into models/mmaudio and choose it in MMAudio ModelLoader")
    for key, value in state.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise AdapterError(f"{key} is not finite, or no floating-point number: the file is broken")
        if match := _MATRIX.fullmatch(key):
            matrices.setdefault(match[1], {})[match[2]] = value
        elif match := _MAGNITUDE.fullmatch(key):
            magnitudes[match[1]] = value
        elif match := _BIAS.fullmatch(key):
            biases[match[1]] = value
        else:
            raise AdapterError(f"it holds {key}; LoRA's A and B, DoRA's magnitudes and biases can be read")
    return matrices, magnitudes, biases


def _find_alpha(layer: str, config: Mapping[str, Any]) -> float:
    """The alpha of a layer: of the first of PEFT's patterns that matches, else the general one."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if len(pattern) > MAX_PATTERN or re.search(r"\)[*+{]", pattern):  # could take for ever to match
            raise AdapterError(f"alpha_pattern {pattern[:50]!r} is too complicated")
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return float(alpha)
    return float(config["lora_alpha"])


def _summary(layers: Mapping[str, LowRank], header: Mapping[str, Any], base_model: str) -> str:
    ranks = sorted({len(layer.a) for layer in layers.values()})
    parts = [f"for {base_model or 'an unnamed model'}", f"rank {' to '.join(map(str, sorted({ranks[0], ranks[-1]})))}"]
    clips = header.get("data", {}).get("train", {}).get("clips")
    if clips:
        parts.append(f"trained on {clips} clips in {header.get('step', 0)} steps")
    return ", ".join([*parts, *([f"licence {header['licence']}"] if "licence" in header else [])])
