"""Start of training from an adapter: a new one of the same rank, or a higher one, gets its values and its function.

r old rank, R new rank.
"""

from __future__ import annotations

from torch import nn

from mmaudio.errors import ConfigError
from mmaudio.lora.adapter import adapter_state, load_adapter_state
from mmaudio.lora.checkpoint import AdapterFile
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_compat import adapted_modules
from mmaudio.lora.peft_layers import ADAPTER_NAME, KEY_PREFIX, lora_layers
from mmaudio.lora.targets import layer_settings, select_targets

LARGER_BIASES = {"none": ("none", "lora_only", "all"), "lora_only": ("lora_only", "all"), "all": ("all",)}
"""The values of `lora.bias` that train at least the biases of each."""


def check_start(adapter: AdapterFile, network: nn.Module, config: LoRAConfig) -> None:
    """Raise ConfigError where a new adapter of `config` cannot compute what `adapter`, which fits the network, does."""
    if adapter.lora.enabled != config.enabled:
        enabled = str(adapter.lora.enabled).lower()
        raise ConfigError(f"init_from: it was trained with lora.enabled={enabled}; set that, or leave init_from out")
    if not config.enabled:
        return
    if config.init_lora_weights == "pissa":
        raise ConfigError("lora.init_lora_weights=pissa starts from the base's own weights: leave it or init_from out")
    if adapter.lora.use_dora != config.use_dora:
        raise ConfigError(
            f"init_from: it was trained with lora.use_dora={str(adapter.lora.use_dora).lower()}; set that"
        )
    if config.bias not in LARGER_BIASES[adapter.lora.bias]:
        raise ConfigError(f"init_from: it has biases, which lora.bias={config.bias} has not; set {adapter.lora.bias}")
    targets, layers = select_targets(network, config), adapted_modules(adapter.state)
    if absent := sorted(set(layers) - set(targets)):
        raise ConfigError(
            f"init_from: it adapts {len(absent)} layers that lora.target_modules leaves out, as {absent[0]}; name them"
        )
    old, new = layer_settings(adapter.lora, layers), layer_settings(config, targets)
    if narrow := [name for name in layers if old[name].rank > new[name].rank]:
        name = max(narrow, key=lambda name: old[name].rank)
        raise ConfigError(
            f"init_from: its rank is {old[name].rank} ({name}), which rank {new[name].rank} cannot hold; a rank stays "
            f"or grows: set lora.rank={old[name].rank} or more"
        )


def load_start(model: nn.Module, adapter: AdapterFile) -> None:
    """Copy the values of `adapter` into a new adapter that `check_start` admits: the function becomes the old one.

    A (R, in, ...) keeps its new rows below the old ones, B (out, R, ...) its zeros beside them.
    """
    if not adapter.lora.enabled:
        load_adapter_state(model, adapter.state)
        return
    state, layers = adapter_state(model), lora_layers(model)
    settings = layer_settings(adapter.lora, adapted_modules(adapter.state))
    for key, value in adapter.state.items():
        name, _, half = key.removeprefix(KEY_PREFIX).rpartition(".lora_")
        if half == "A.weight":
            state[key][: len(value)] = value
        elif half == "B.weight":
            factor = settings[name].scale / layers[name].scaling[ADAPTER_NAME]
            state[key][:, : value.shape[1]] = value * factor
        else:
            state[key] = value
    load_adapter_state(model, state)
