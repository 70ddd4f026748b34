"""Which layers an adapter is on, and with which rank: patterns over the dotted names of modules.

Shell-style patterns over a module's whole dotted name or its end; `*` and `[*]` are one component, `joint_blocks[0]` is
`joint_blocks.0`. A pattern that names a container means every linear and convolution in it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import nn

from mmaudio.errors import ConfigError
from mmaudio.lora.config import LoRAConfig

SHOWN = 3
"""Layers that an error names."""
LINEAR_TARGETS = (
    "joint_blocks[*].*_block.attn.qkv",
    "joint_blocks[*].text_block.ffn",
    "fused_blocks[*].attn.qkv",
)
"""Those of the default targets that are linears; the other MLPs are convolutions."""


@dataclass(frozen=True)
class LayerSettings:
    """How one layer is adapted."""

    rank: int
    alpha: float
    scale: float
    """Factor on B A."""


def expand_targets(network: nn.Module, patterns: Sequence[str], key: str = "lora.target_modules") -> list[str]:
    """Names of the linears and convolutions that the patterns mean, in the network's order, each once.

    Raises ConfigError, which names the setting `key`, for a pattern that matches none, with the nearest names.
    """
    modules = dict(network.named_modules())
    leaves = [name for name, module in modules.items() if isinstance(module, (nn.Linear, nn.Conv1d))]
    chosen: set[str] = set()
    for pattern in patterns:
        inside = {leaf for leaf in leaves if matches(pattern, leaf)}
        if not inside:
            matched = [name for name in modules if _regex(pattern).fullmatch(name)]
            raise ConfigError(_no_match(pattern, matched, leaves, key))
        chosen |= inside
    return [leaf for leaf in leaves if leaf in chosen]


def matches(pattern: str, leaf: str) -> bool:
    """Whether a pattern means a layer, by its own name or that of a module around it."""
    regex, parts = _regex(pattern), leaf.split(".")
    return any(regex.fullmatch(".".join(parts[: count + 1])) for count in range(len(parts)))


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    """The pattern over a whole dotted name or its end; no wildcard crosses a dot."""
    found = ""
    for token in re.findall(r"\.?\[\*\]|\.?\[[^\]]+\]|.", pattern):
        if token.endswith("[*]"):
            found += r"\.[^.]+" if found else "[^.]+"
        elif len(token) > 1:
            inside = token.strip(".[]")
            inside = f"^.{inside[1:]}" if inside.startswith("!") else inside
            index = not token.startswith(".") and inside.isdecimal()  # joint_blocks[0], but also ffn.w[12]
            dot = r"\." if token.startswith(".") else ""
            found += rf"(?:\.{inside}|[{inside}])" if index else f"{dot}[{inside}]"
        else:
            found += {"*": "[^.]*", "?": "[^.]"}.get(token, re.escape(token))
    try:
        return re.compile(rf"(?:.*\.)?{found}")
    except re.error as error:
        raise ConfigError(f"lora: {pattern!r} is no shell-style pattern: {error}") from error


def _no_match(pattern: str, matched: list[str], leaves: list[str], key: str) -> str:
    if matched:
        return f"{key}: {pattern!r} names {matched[0]}, which holds no linear or convolution to adapt"
    names = {re.sub(r"\.\d+\.", "[*].", name) for name in leaves}
    names |= {name.rsplit(".", 1)[0] for name in names if "." in name}
    wanted = re.sub(r"\.?\[[^\]]*\](?=\.)|\.(\*|\d+)(?=\.)", "[*]", pattern)
    nearest = difflib.get_close_matches(wanted, sorted(names), n=3, cutoff=0.0)
    place = "the adapted layers" if key.endswith("_pattern") else "the network"
    return f"{key}: {pattern!r} matches nothing in {place}; the nearest names: {', '.join(nearest)}"


def layer_settings(config: LoRAConfig, targets: Sequence[str]) -> dict[str, LayerSettings]:
    """The settings of every layer in `targets`: by the first pattern that matches it, else rank and alpha of `config`.

    Raises ConfigError for a pattern that matches none of them, with the nearest names.
    """
    ranks = _by_pattern("lora.rank_pattern", config.rank_pattern, targets)
    alphas = _by_pattern("lora.alpha_pattern", config.alpha_pattern, targets)
    found = {}
    for name in targets:
        rank, alpha = int(ranks.get(name, config.rank)), alphas.get(name, config.alpha)
        found[name] = LayerSettings(rank, alpha, alpha / (math.sqrt(rank) if config.use_rslora else rank))
    return found


def _by_pattern(key: str, patterns: Mapping[str, float], targets: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pattern, value in patterns.items():
        inside = [name for name in targets if matches(pattern, name)]
        if not inside:
            raise ConfigError(_no_match(pattern, [], list(targets), key))
        found = dict.fromkeys(inside, value) | found
    return found


def fresh_targets(network: nn.Module, config: LoRAConfig) -> list[str]:
    """The layers that a new adapter of `config` is on, none where all are trained; ConfigError as `lora.add_lora`."""
    if not config.enabled:
        return []
    expand_targets(network, config.extra_targets, "lora.extra_targets")
    targets = expand_targets(network, [*config.target_modules, *config.extra_targets])
    check_fresh(network, config, targets)
    return targets


def check_fresh(network: nn.Module, config: LoRAConfig, targets: Sequence[str]) -> None:
    """ConfigError where a new adapter cannot be as `config` says: a rank beyond its layer, a kind not made for it.

    A B A of rank r has no more directions than the layer has inputs (of all taps) or outputs.
    """
    last = config.in_phase(len(config.phases) - 1)
    for name, layer in layer_settings(last, targets).items():
        outputs, *inputs = network.get_parameter(f"{name}.weight").shape
        width = min(outputs, math.prod(inputs))
        if layer.rank > width:
            raise ConfigError(
                f"lora.rank={layer.rank}: {name} is {width} wide, a higher rank adds nothing there; take at most "
                f"{width}, or give that layer its own in lora.rank_pattern"
            )
    others = convolutions(network, targets)
    if others and (config.use_dora or config.init_lora_weights == "pissa"):
        setting, preset = ("use_dora=true", "dora") if config.use_dora else ("init_lora_weights=pissa", "pissa")
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise ConfigError(
            f"lora.{setting}: {config.kind} is for linears, but {', '.join(others[:SHOWN])}{more} are convolutions; "
            f"name linears only, as preset={preset} does: lora.target_modules=[{','.join(LINEAR_TARGETS)}]"
        )


def convolutions(network: nn.Module, targets: Iterable[str]) -> list[str]:
    """The layers among `targets` that are no linears."""
    return [name for name in targets if not isinstance(network.get_submodule(name), nn.Linear)]
