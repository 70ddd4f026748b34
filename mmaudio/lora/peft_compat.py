"""Reading of adapters that other programs wrote with peft: their keys, shapes and settings.

state = lora_weights(stored)                # PEFT's keys, or an error that names the first other key
lora = lora_settings(adapter_config, targets)
find_possible_models(state)                 # ["medium_44k"]
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.patterns import check_length, match_names
from mmaudio.lora.peft_layers import KEY_PREFIX
from mmaudio.lora.targets import layer_settings
from mmaudio.model.blocks import block_name
from mmaudio.model.networks import build_network
from mmaudio.model.spec import MODELS
from mmaudio.utils.garbage_collection import no_garbage_collection

MAX_CONFIG_BYTES = 10_000_000
"""Size of adapter_config.json; with every layer named it has some 50 kB."""
_KEY = re.compile(rf"(?:{re.escape(KEY_PREFIX)})?(.+)\.lora_([AB])(?:\.default)?\.weight")
_MAGNITUDE = re.compile(rf"(?:{re.escape(KEY_PREFIX)})?(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_BIAS = re.compile(rf"(?:{re.escape(KEY_PREFIX)})?((?:(?!lora_).)+)\.bias")
_IGNORED_SETTINGS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
"""Settings of how an adapter was made; the target layers follow from the names of its weights."""
_SUPPORTED_SETTINGS = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
}
DTYPES = ("float64", "float32", "float16", "bfloat16")
"""Types of an adapter's values."""
_SUPPORTED_INITIALIZATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that do not change the base weights."""


def read_peft_config(path: Path) -> Any:
    """peft's settings, None where there is no such file."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise WeightsError(f"{path.name} has {path.stat().st_size} bytes, more than settings take")
    return json.loads(path.read_text("utf-8-sig"))


def lora_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Collect A and B matrices, DoRA's magnitudes and biases under PEFT's keys.

    Raises WeightsError for any other key, for values as `check_values`, and for an A without its B or the reverse.
    """
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _peft_key(key)
        if not name:
            raise WeightsError(
                f"holds {key}: an adapter of LoRA's A and B matrices is expected, DoRA's magnitudes and biases at most"
            )
        weights[name] = value
    check_values(weights)
    matrices = [key for key in weights if key.endswith((".lora_A.weight", ".lora_B.weight"))]
    unpaired = [key for key in matrices if _paired_key(key) not in weights]
    if unpaired or not matrices:
        raise WeightsError(f"{unpaired[0]} has no {_paired_key(unpaired[0])}" if unpaired else "holds no weights")
    return weights


def check_values(state: Mapping[str, Tensor]) -> None:
    """Raise WeightsError for values that are no floating-point numbers of 16 bits or more, or not finite."""
    for key, value in state.items():
        kind = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
        if kind not in DTYPES:
            raise WeightsError(f"{key} is of type {kind}; {', '.join(DTYPES)} are read")
        if value.layout != torch.strided or value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise WeightsError(f"{key} is stored in another form than all of its values; {', '.join(DTYPES)} are read")
        if not value.isfinite().all():
            raise WeightsError(f"{key} is not finite: the adapter is broken; take another checkpoint")


def check_ranks(lora: LoRAConfig, state: Mapping[str, Tensor]) -> None:
    """Raise WeightsError where the matrices (PEFT's keys) are not those of the settings' ranks."""
    for name, settings in layer_settings(lora, adapted_modules(state)).items():
        a, b = _matrix_shapes(state, name)
        if not (2 <= len(a) == len(b) and a[0] == b[1]):
            raise WeightsError(
                f"the matrices of {name} are {list(a)} and {list(b)}: no A (rank, ...) and B (..., rank)"
            )
        if a[0] != settings.rank:
            raise WeightsError(f"the matrices of {name} have rank {a[0]}, the settings say {settings.rank}")


def _matrix_shapes(state: Mapping[str, Tensor], name: str) -> list[tuple[int, ...]]:
    """Shapes of the A and B matrix of a layer."""
    return [tuple(state[f"{KEY_PREFIX}{name}.lora_{half}.weight"].shape) for half in "AB"]


def _peft_key(key: str) -> str:
    """PEFT's key of a value, without the adapter's name; empty for a key that is not an adapter's."""
    if match := _KEY.fullmatch(key):
        return f"{KEY_PREFIX}{match[1]}.lora_{match[2]}.weight"
    if match := _MAGNITUDE.fullmatch(key):
        return f"{KEY_PREFIX}{match[1]}.lora_magnitude_vector"
    match = _BIAS.fullmatch(key)
    return f"{KEY_PREFIX}{match[1]}.bias" if match else ""


def _paired_key(key: str) -> str:
    """Key of the B matrix for an A matrix, and the reverse."""
    name, half, _ = key.rsplit(".", 2)
    return f"{name}.lora_{'B' if half == 'lora_A' else 'A'}.weight"


def adapted_modules(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that have matrices in `state` (PEFT's keys), sorted."""
    suffix = ".lora_A.weight"
    return sorted(key.removeprefix(KEY_PREFIX).removesuffix(suffix) for key in state if key.endswith(suffix))


def lora_settings(config: Mapping[str, Any], targets: list[str]) -> LoRAConfig:
    """Convert an `adapter_config.json` to LoRAConfig, for an adapter on the layers `targets`.

    Raises WeightsError for another method than LoRA, a missing setting, or a setting that is not supported.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise WeightsError(f"peft_type is {kind!r}; only LORA adapters are read")
    missing = [name for name in ("r", "lora_alpha") if name not in config]
    if missing:
        raise WeightsError(f"{missing[0]} is missing in adapter_config.json")
    _check_supported(config)
    rank, alpha = config["r"], config["lora_alpha"]
    try:
        return LoRAConfig(
            rank=rank,
            alpha=alpha,
            dropout=config.get("lora_dropout") or 0.0,
            target_modules=targets,
            rank_pattern=_expand_pattern(config.get("rank_pattern"), targets, rank),
            alpha_pattern=_expand_pattern(config.get("alpha_pattern"), targets, alpha),
            use_rslora=config.get("use_rslora") or False,
            use_dora=config.get("use_dora") or False,
            bias=config.get("bias") or "none",
        )
    except (ConfigError, AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"adapter_config.json is invalid: {error}") from error


def _expand_pattern(patterns: Mapping[str, Any] | None, targets: list[str], default: Any) -> dict[str, Any]:
    """Expand peft's patterns, which are regular expressions, to layer names with a value other than the default."""
    expressions = {}
    for pattern in patterns or {}:
        check_length(pattern)
        expressions[pattern] = rf"(.*\.)?({pattern})"  # as peft's get_pattern_key has it
    values: dict[str, Any] = {}
    for pattern, names in match_names(expressions, targets).items():
        values = dict.fromkeys(names, (patterns or {})[pattern]) | values
    return {name: values[name] for name in targets if name in values and values[name] != default}


def _check_supported(config: Mapping[str, Any]) -> None:
    initialization = config.get("init_lora_weights", True)
    if initialization not in _SUPPORTED_INITIALIZATIONS:
        raise WeightsError(
            f"init_lora_weights is {initialization!r}, which changes the base weights; let peft convert it "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    known_names = _IGNORED_SETTINGS | _SUPPORTED_SETTINGS | {"init_lora_weights"}
    others = {name: value for name, value in config.items() if value and name not in known_names}
    if not others:
        return
    with no_garbage_collection():
        from peft import LoraConfig  # slow to import

    defaults = {field.name: getattr(LoraConfig(), field.name) for field in dataclasses.fields(LoraConfig)}
    for name in sorted(others.keys() & defaults.keys()):
        if others[name] != defaults[name]:
            supported = ", ".join(sorted(_SUPPORTED_SETTINGS))
            raise WeightsError(f"{name} is {others[name]!r}; of peft's settings, {supported} are read")


def find_misfits(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Describe the parts of an adapter (PEFT's keys) that do not fit a network, which may be on the meta device."""
    modules = dict(network.named_modules())
    problems = []
    for name in adapted_modules(state):
        layer = modules.get(name)
        if not isinstance(layer, (nn.Linear, nn.Conv1d)):
            problems.append(f"it has no layer {name}")
            continue
        a, b = _matrix_shapes(state, name)
        if (b[0], *a[1:]) != tuple(layer.weight.shape):
            shape, adapter_shape = (" x ".join(map(str, sizes)) for sizes in (layer.weight.shape, (b[0], *a[1:])))
            problems.append(f"{name} is {shape}, not {adapter_shape}")
        if f"{KEY_PREFIX}{name}.lora_magnitude_vector" in state and not isinstance(layer, nn.Linear):
            problems.append(f"{name} is a convolution, and DoRA is supported on linears only")
    for key, value in state.items():
        name = key.removeprefix(KEY_PREFIX).removesuffix(".bias").removesuffix(".base_layer")
        bias = getattr(modules.get(name), "bias", None)
        if key.endswith(".bias") and not (isinstance(bias, Tensor) and bias.shape == value.shape):
            problems.append(f"it has no bias {name}.bias of {value.numel()}")
    return problems


def find_possible_models(state: Mapping[str, Tensor]) -> list[str]:
    """Base models that an adapter (PEFT's keys) fits; if some of them have as many blocks as it, only these.

    Shapes do not distinguish models that differ only outside the adapted layers, such as small_16k and small_44k.
    """
    fitting, exact = [], []
    for name, spec in MODELS.items():
        with torch.device("meta"):
            network = build_network(name)
        if find_misfits(network, state):
            continue
        fitting.append(name)
        num_blocks = {"joint_blocks": spec.network.num_joint_blocks, "fused_blocks": spec.network.num_fused_blocks}
        if all(num_blocks[stack] == count for stack, count in _count_blocks(state).items()):
            exact.append(name)
    return exact or fitting


def _count_blocks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of blocks that an adapter spans, by stack: the highest index plus one."""
    counts: dict[str, int] = {}
    for name in adapted_modules(state):
        stack, _, index = block_name(name).partition(".")
        if index:
            counts[stack] = max(counts.get(stack, 0), int(index) + 1)
    return counts


def describe_shapes(models: Sequence[str]) -> str:
    """`these are the shapes of medium_44k`."""
    return f"these are the shapes of {' or '.join(models)}"
