"""Target layers of an adapter and their ranks, selected by patterns over dotted module names.

Shell-style patterns match a module's whole dotted name or its end; `*` and `[*]` match one component, `joint_blocks[0]`
is `joint_blocks.0`. A pattern that matches a container selects every linear and convolution in it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from mmaudio.errors import ConfigError
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.patterns import check_length, match_names

MAX_LAYERS_SHOWN = 3
"""Number of layers that an error names."""
LINEAR_TARGETS = (
    "joint_blocks[*].*_block.attn.qkv",
    "joint_blocks[*].text_block.ffn",
    "fused_blocks[*].attn.qkv",
)
"""The linears among the default targets; the other MLPs are convolutions."""


@dataclass(frozen=True)
class LayerSettings:
    """Rank and scale of one adapted layer."""

    rank: int
    alpha: float
    scale: float
    """Factor on B A."""


def expand_targets(network: nn.Module, patterns: Sequence[str], key: str = "lora.target_modules") -> list[str]:
    """Expand patterns to the names of linears and convolutions, in the order of the network, each once.

    Raises ConfigError with the setting `key` and the nearest names for a pattern that matches nothing.
    """
    modules = dict(network.named_modules())
    leaves = [name for name, module in modules.items() if isinstance(module, (nn.Linear, nn.Conv1d))]
    selected: set[str] = set()
    for pattern, inside in layers_by_pattern(patterns, leaves).items():
        if not inside:
            matched = match_names({pattern: _expression(pattern)}, list(modules))[pattern]
            raise ConfigError(_no_match(pattern, matched, leaves, key))
        selected.update(inside)
    return [leaf for leaf in leaves if leaf in selected]


def layers_by_pattern(patterns: Iterable[str], leaves: Sequence[str]) -> dict[str, list[str]]:
    """For every pattern the layers whose name, or that of a module that contains them, it matches."""
    containers = {leaf: {leaf[:end] for end in _ends_of_components(leaf)} for leaf in leaves}
    names = sorted(set().union(*containers.values()))
    matches = match_names({pattern: _expression(pattern) for pattern in patterns}, names)
    return {
        pattern: [leaf for leaf in leaves if not containers[leaf].isdisjoint(matches[pattern])] for pattern in matches
    }


def _ends_of_components(name: str) -> list[int]:
    """Lengths of the dotted name `name` and of the names of the modules that contain it."""
    return [place for place, character in enumerate(name) if character == "."] + [len(name)]


def _expression(pattern: str) -> str:
    """Translate a pattern over a whole dotted name or its end; no wildcard matches a dot."""
    check_length(pattern)
    translated = ""
    for token in re.findall(r"\.?\[\*\]|\.?\[[^\]]+\]|.", pattern):
        if token.endswith("[*]"):
            translated += r"\.[^.]+" if translated else "[^.]+"
        elif len(token) > 1:
            inside = token.strip(".[]")
            inside = f"^.{inside[1:]}" if inside.startswith("!") else inside
            index = not token.startswith(".") and inside.isdecimal()  # joint_blocks[0], but also ffn.w[12]
            dot = r"\." if token.startswith(".") else ""
            translated += rf"(?:\.{inside}|[{inside}])" if index else f"{dot}[{inside}]"
        else:
            translated += {"*": "[^.]*", "?": "[^.]"}.get(token, re.escape(token))
    return rf"(?:.*\.)?{translated}"


def _no_match(pattern: str, matched: list[str], leaves: list[str], key: str) -> str:
    if matched:
        return f"{key}: {pattern!r} names {matched[0]}, which holds no linear or convolution to adapt"
    names = {re.sub(r"\.\d+\.", "[*].", name) for name in leaves}
    names |= {name.rsplit(".", 1)[0] for name in names if "." in name}
    normalized = re.sub(r"\.?\[[^\]]*\](?=\.)|\.(\*|\d+)(?=\.)", "[*]", pattern)
    nearest = difflib.get_close_matches(normalized, sorted(names), n=3, cutoff=0.0)
    searched = "the adapted layers" if key.endswith("_pattern") else "the network"
    return f"{key}: {pattern!r} matches nothing in {searched}; the nearest names: {', '.join(nearest)}"


def layer_settings(config: LoRAConfig, targets: Sequence[str]) -> dict[str, LayerSettings]:
    """Settings of every layer in `targets`: by the first pattern that matches it, else rank and alpha of `config`.

    Raises ConfigError with the nearest names for a pattern that matches none of them.
    """
    ranks = _values_by_layer("lora.rank_pattern", config.rank_pattern, targets)
    alphas = _values_by_layer("lora.alpha_pattern", config.alpha_pattern, targets)
    settings = {}
    for name in targets:
        rank, alpha = int(ranks.get(name, config.rank)), alphas.get(name, config.alpha)
        settings[name] = LayerSettings(rank, alpha, alpha / (math.sqrt(rank) if config.use_rslora else rank))
    return settings


def _values_by_layer(key: str, patterns: Mapping[str, float], targets: Sequence[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for pattern, inside in layers_by_pattern(patterns, targets).items():
        if not inside:
            raise ConfigError(_no_match(pattern, [], list(targets), key))
        values = dict.fromkeys(inside, patterns[pattern]) | values
    return values


def select_targets(network: nn.Module, config: LoRAConfig) -> list[str]:
    """Target layers of a new adapter of `config`, empty for full fine-tuning; ConfigError as for `add_lora`."""
    if not config.enabled:
        return []
    expand_targets(network, config.extra_targets, "lora.extra_targets")
    targets = expand_targets(network, [*config.target_modules, *config.extra_targets])
    check_targets(network, config, targets)
    return targets


def check_targets(network: nn.Module, config: LoRAConfig, targets: Sequence[str]) -> None:
    """Raise ConfigError for a rank larger than its layer, or a kind of adapter that does not support the layer.

    The rank of B A is limited by the layer's inputs (of all taps) and outputs.
    """
    last_phase = config.in_phase(len(config.phases) - 1)
    for name, layer in layer_settings(last_phase, targets).items():
        outputs, *inputs = network.get_parameter(f"{name}.weight").shape
        width = min(outputs, math.prod(inputs))
        if layer.rank > width:
            raise ConfigError(
                f"lora.rank={layer.rank}: {name} is {width} wide, a higher rank adds nothing there; take at most "
                f"{width}, or give that layer its own in lora.rank_pattern"
            )
    unsupported = find_convolutions(network, targets)
    if unsupported and (config.use_dora or config.init_lora_weights == "pissa"):
        setting, preset = ("use_dora=true", "dora") if config.use_dora else ("init_lora_weights=pissa", "pissa")
        names = ", ".join(unsupported[:MAX_LAYERS_SHOWN])
        if len(unsupported) > MAX_LAYERS_SHOWN:
            names += f" and {len(unsupported) - MAX_LAYERS_SHOWN} more"
        raise ConfigError(
            f"lora.{setting}: {config.method_name} is for linears, but {names} are convolutions; "
            f"name linears only, as preset={preset} does: lora.target_modules=[{','.join(LINEAR_TARGETS)}]"
        )


def find_convolutions(network: nn.Module, targets: Iterable[str]) -> list[str]:
    """The convolutions among `targets`."""
    return [name for name in targets if not isinstance(network.get_submodule(name), nn.Linear)]
