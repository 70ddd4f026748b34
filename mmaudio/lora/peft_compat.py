"""What an adapter that anyone may have written says of itself: its keys, its shapes, and peft's settings.

state = lora_weights(stored)            # PEFT's keys, or an error that says what else is in there
lora = lora_settings(adapter_config)    # ours
likely_models(state)                    # ["medium_44k"]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_layers import PREFIX
from mmaudio.model.networks import build_network
from mmaudio.model.spec import MODELS

_KEY = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])(?:\.default)?\.weight")
_MAGNITUDE = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_BIAS = re.compile(rf"(?:{re.escape(PREFIX)})?((?:(?!lora_).)+)\.bias")
_WITHOUT_EFFECT = {
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
"""Settings that say how an adapter was made: the names of its weights already say on which layers."""
_OWN = {"r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias"}
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base weights as they are."""


def lora_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The A and B matrices, DoRA's magnitudes and biases, under the keys that PEFT saves.

    Raises WeightsError where there is anything else, or a half.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _peft_key(key)
        if not name:
            raise WeightsError(
                f"holds {key}: an adapter of LoRA's A and B matrices is expected, DoRA's magnitudes and biases at most"
            )
        if not value.isfinite().all():
            raise WeightsError(f"{key} is not finite: the adapter is broken; take another checkpoint")
        found[name] = value
    matrices = [key for key in found if key.endswith((".lora_A.weight", ".lora_B.weight"))]
    halves = [key for key in matrices if _other_half(key) not in found]
    if halves or not matrices:
        raise WeightsError(f"{halves[0]} stands without its other half" if halves else "holds no weights")
    return found


def _peft_key(key: str) -> str:
    """The key that PEFT saves a value under, with or without the adapter's name; empty for what is no adapter's."""
    if match := _KEY.fullmatch(key):
        return f"{PREFIX}{match[1]}.lora_{match[2]}.weight"
    if match := _MAGNITUDE.fullmatch(key):
        return f"{PREFIX}{match[1]}.lora_magnitude_vector"
    match = _BIAS.fullmatch(key)
    return f"{PREFIX}{match[1]}.bias" if match else ""


def _other_half(key: str) -> str:
    name, half, _ = key.rsplit(".", 2)
    return f"{name}.lora_{'B' if half == 'lora_A' else 'A'}.weight"


def adapted_modules(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that have matrices in `state` (PEFT's keys), sorted."""
    end = ".lora_A.weight"
    return sorted(key.removeprefix(PREFIX).removesuffix(end) for key in state if key.endswith(end))


def lora_settings(config: Mapping[str, Any], targets: list[str]) -> LoRAConfig:
    """Our settings of an `adapter_config.json`, for an adapter on the layers `targets`.

    Raises WeightsError for another method than LoRA, a setting that is missing, or one that is not read here.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise WeightsError(f"peft_type is {kind!r}; only LORA adapters are read")
    missing = [name for name in ("r", "lora_alpha") if name not in config]
    if missing:
        raise WeightsError(f"{missing[0]} is missing in adapter_config.json")
    _refuse_other_methods(config)
    rank, alpha = config["r"], config["lora_alpha"]
    try:
        return LoRAConfig(
            rank=rank,
            alpha=float(alpha),
            dropout=float(config.get("lora_dropout", 0.0)),
            target_modules=targets,
            rank_pattern=_by_name(config.get("rank_pattern"), targets, rank),
            alpha_pattern=_by_name(config.get("alpha_pattern"), targets, alpha),
            use_rslora=bool(config.get("use_rslora")),
            use_dora=bool(config.get("use_dora")),
            bias=config.get("bias") or "none",
        )
    except (ConfigError, TypeError, ValueError, re.error) as error:
        raise WeightsError(f"adapter_config.json makes no sense: {error}") from error


def _by_name(patterns: Mapping[str, Any] | None, targets: list[str], usual: Any) -> dict[str, Any]:
    """peft's patterns, regular expressions, as the names of the layers that they mean."""
    if not patterns:
        return {}
    found = {name: patterns.get(get_pattern_key(list(patterns), name), usual) for name in targets}
    return {name: value for name, value in found.items() if value != usual}


def _refuse_other_methods(config: Mapping[str, Any]) -> None:
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise WeightsError(
            f"init_lora_weights is {start!r}, which changes the base weights; let peft convert it "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    usual = {field.name: getattr(LoraConfig(), field.name) for field in dataclasses.fields(LoraConfig)}
    for name in usual.keys() - _WITHOUT_EFFECT - _OWN - {"init_lora_weights"}:
        value = config.get(name)
        if value and value != usual[name]:
            raise WeightsError(f"{name} is {value!r}; of peft's settings, {', '.join(sorted(_OWN))} are read")


def misfits(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What of an adapter (PEFT's keys) does not fit a network, which may be on the meta device; empty if it fits."""
    modules = dict(network.named_modules())
    found = []
    for name in adapted_modules(state):
        layer = modules.get(name)
        if not isinstance(layer, (nn.Linear, nn.Conv1d)):
            found.append(f"it has no layer {name}")
            continue
        a, b = (tuple(state[f"{PREFIX}{name}.lora_{half}.weight"].shape) for half in "AB")
        out, *rest = layer.weight.shape
        if a[1:] != tuple(rest) or b[0] != out:
            found.append(f"{name} is {out} x {' x '.join(map(str, rest))}, not {b[0]} x {' x '.join(map(str, a[1:]))}")
        if f"{PREFIX}{name}.lora_magnitude_vector" in state and not isinstance(layer, nn.Linear):
            found.append(f"{name} is a convolution, and DoRA is read on linears only")
    for key, value in state.items():
        name = key.removeprefix(PREFIX).removesuffix(".bias").removesuffix(".base_layer")
        bias = getattr(modules.get(name), "bias", None)
        if key.endswith(".bias") and not (isinstance(bias, Tensor) and bias.shape == value.shape):
            found.append(f"it has no bias {name}.bias of {len(value)}")
    return found


def likely_models(state: Mapping[str, Tensor]) -> list[str]:
    """The base models that an adapter (PEFT's keys) fits; of those with as many blocks as it has, if any, only them.

    Shapes cannot tell models that differ outside the adapted layers alone, such as small_16k from small_44k.
    """
    fitting, exact = [], []
    for name, spec in MODELS.items():
        with torch.device("meta"):
            network = build_network(name)
        if misfits(network, state):
            continue
        fitting.append(name)
        own = {"joint_blocks": spec.network.joint_blocks, "fused_blocks": spec.network.fused_blocks}
        if all(own[blocks] == count for blocks, count in _blocks(state).items()):
            exact.append(name)
    return exact or fitting


def _blocks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """How many blocks an adapter reaches over: the highest number of each kind, plus one."""
    counts: dict[str, int] = {}
    for name in adapted_modules(state):
        match = re.match(r"(joint_blocks|fused_blocks)\.(\d+)\.", name)
        if match:
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts


def shapes_of(models: Sequence[str]) -> str:
    """`these are the shapes of medium_44k`."""
    return f"these are the shapes of {' or '.join(models)}"
