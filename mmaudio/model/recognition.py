"""What an adapter that anyone may have written says of itself: its keys, its shapes, and peft's settings.

state = lora_weights(stored)                    # PEFT's keys, or an error that says what else is in there
lora, options = lora_settings(adapter_config)   # ours, and what only peft has a name for
likely_models(state)                            # ["medium_44k"]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.model.lora import LoRAConfig
from mmaudio.model.networks import build_network
from mmaudio.model.spec import MODELS

PREFIX = "base_model.model."
"""What PEFT's keys begin with."""
OPTIONS = ("use_rslora", "rank_pattern", "alpha_pattern")
"""Settings of peft beyond our own that change what an adapter computes, and are kept and applied."""

_KEY = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])(?:\.default)?\.weight")
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "task_type",
}  # fmt: skip
"""Settings that say how an adapter was made: the names of its weights already say on which layers."""
_OWN = {"r", "lora_alpha", "lora_dropout"}
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base weights as they are."""


def lora_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The A and B matrices under the keys that PEFT saves; WeightsError where there is anything else, or a half."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise WeightsError(
                f"holds {key}: an adapter of LoRA's A and B matrices is expected, without biases, DoRA or whole layers"
            )
        if not value.isfinite().all():
            raise WeightsError(f"{key} is not finite: the adapter is broken; take another checkpoint")
        found[f"{PREFIX}{match[1]}.lora_{match[2]}.weight"] = value
    halves = [key for key in found if _other_half(key) not in found]
    if halves or not found:
        raise WeightsError(f"{halves[0]} stands without its other half" if halves else "holds no weights")
    return found


def _other_half(key: str) -> str:
    name, half, _ = key.rsplit(".", 2)
    return f"{name}.lora_{'B' if half == 'lora_A' else 'A'}.weight"


def adapted_modules(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that have weights in `state` (PEFT's keys), sorted."""
    return sorted({key.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for key in state})


def lora_settings(config: Mapping[str, Any], targets: list[str]) -> tuple[LoRAConfig, dict[str, Any]]:
    """Our settings and peft's further OPTIONS in an `adapter_config.json`, for an adapter on the layers `targets`.

    Raises WeightsError for another method than LoRA, a setting that is missing, or one that is not read here.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise WeightsError(f"peft_type is {kind!r}; only LORA adapters are read")
    missing = [name for name in ("r", "lora_alpha") if name not in config]
    if missing:
        raise WeightsError(f"{missing[0]} is missing in adapter_config.json")
    _refuse_other_methods(config)
    try:
        lora = LoRAConfig(config["r"], float(config["lora_alpha"]), float(config.get("lora_dropout", 0.0)), targets)
    except (ConfigError, TypeError, ValueError) as error:
        raise WeightsError(f"adapter_config.json makes no sense: {error}") from error
    return lora, {name: config[name] for name in OPTIONS if config.get(name)}


def _refuse_other_methods(config: Mapping[str, Any]) -> None:
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise WeightsError(
            f"init_lora_weights is {start!r}, which changes the base weights; let peft convert it "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    usual = {field.name: getattr(LoraConfig(), field.name) for field in dataclasses.fields(LoraConfig)}
    for name in usual.keys() - _WITHOUT_EFFECT - _OWN - {*OPTIONS, "init_lora_weights"}:
        value = config.get(name)
        if value and value != usual[name]:
            raise WeightsError(f"{name} is {value!r}; plain LoRA is read, and {', '.join(OPTIONS)}")


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
