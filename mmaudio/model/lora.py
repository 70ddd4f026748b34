"""LoRA through peft: which layers are adapted, and what can be done with an adapter.

    model = add_lora(network, LoRAConfig(rank=32), generator)
    loss = velocity_loss(network, ...)       # the same network computes with the adapter
    state = adapter_state(model)             # PEFT's keys
    network = merge(model)                   # plain weights, exactly the released keys

peft replaces the adapted layers inside the network, in place: the `MMAudio` object given to `add_lora` stays the one to
call, and `adapted_network(model)` is that object. Source: arXiv 2106.09685.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.model.loading import check_keys
from mmaudio.model.networks import MMAudio

DEFAULT_TARGETS = (
    "joint_blocks[*].latent_block.attn.qkv",
    "joint_blocks[*].latent_block.ffn",
    "joint_blocks[*].clip_block.attn.qkv",
    "joint_blocks[*].clip_block.ffn",
    "joint_blocks[*].text_block.attn.qkv",
    "joint_blocks[*].text_block.ffn",
    "fused_blocks[*].attn.qkv",
    "fused_blocks[*].ffn",
)
"""Attention inputs and MLPs of all blocks."""
MAX_STRENGTH = 1.5
"""The largest factor on an adapter's effect; 1 is as trained."""


@dataclass
class LoRAConfig:
    """An adapter's settings; raises ConfigError for values that make no sense."""

    rank: int = 64
    """Width of the low-rank bottleneck."""
    alpha: float = 128.0
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = 0.1
    """Share of the branch's inputs that are dropped in training."""
    target_modules: list[str] = field(default_factory=lambda: list(DEFAULT_TARGETS))
    """Patterns over dotted module names; see `expand_targets`."""
    max_steps: int | None = None
    """Optimizer steps of a phase trained with these settings; None: the trainer's."""

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.rank < 1:
            raise ConfigError(f"lora.rank={self.rank}: the rank is at least 1; 16 to 128 suits small sets")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora.alpha={self.alpha}: the scale is a positive number; twice the rank is usual")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout}: a share from 0 up to, not including, 1; 0.1 is usual")
        if not self.target_modules:
            raise ConfigError("lora.target_modules is empty: name at least one, such as fused_blocks[*].attn.qkv")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"lora.max_steps={self.max_steps}: at least 1, or nothing for the trainer's own number")


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of an adapted network."""

    total: int
    """Base and adapter."""
    trainable: int
    blocks: dict[str, int]
    """Trainable ones by block (`joint_blocks.0`, ...), in the network's order."""


def expand_targets(network: nn.Module, patterns: list[str]) -> list[str]:
    """Names of the linears and convolutions that the patterns mean, in the network's order, each once.

    Shell-style patterns over a module's whole dotted name or its end; `*` and `[*]` are one component,
    `joint_blocks[0]` is `joint_blocks.0`. A pattern that names a container means every linear and convolution in it.
    Raises ConfigError for a pattern that matches none, with the nearest names.
    """
    modules = dict(network.named_modules())
    leaves = [name for name, module in modules.items() if isinstance(module, (nn.Linear, nn.Conv1d))]
    chosen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in modules if _regex(pattern).fullmatch(name)]
        inside = {leaf for leaf in leaves for name in matched if leaf == name or leaf.startswith(f"{name}.")}
        if not inside:
            raise ConfigError(_no_match(pattern, matched, leaves))
        chosen |= inside
    return [leaf for leaf in leaves if leaf in chosen]


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
        raise ConfigError(f"lora.target_modules: {pattern!r} is no shell-style pattern: {error}") from error


def _no_match(pattern: str, matched: list[str], leaves: list[str]) -> str:
    if matched:
        return f"lora.target_modules: {pattern!r} names {matched[0]}, which holds no linear or convolution to adapt"
    names = {re.sub(r"\.\d+\.", "[*].", name) for name in leaves}
    names |= {name.rsplit(".", 1)[0] for name in names if "." in name}
    wanted = re.sub(r"\.?\[[^\]]*\](?=\.)|\.(\*|\d+)(?=\.)", "[*]", pattern)
    nearest = difflib.get_close_matches(wanted, sorted(names), n=3, cutoff=0.0)
    return f"lora.target_modules: {pattern!r} matches nothing in the network; the nearest names: {', '.join(nearest)}"


def add_lora(
    network: MMAudio,
    config: LoRAConfig,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any] | None = None,
) -> PeftModel:
    """Freezes the network and adds a trainable adapter that changes nothing yet (B is zero), in place.

    With a (CPU) generator the A matrices are drawn from it, Kaiming uniform, so a seed gives the same adapter anywhere.
    `options` are further settings of peft's LoraConfig, by its names. Raises ConfigError for a target that matches
    nothing and for a network that has an adapter already.
    """
    if any(True for _ in _lora_layers(network)):
        raise ConfigError("this network has an adapter already: merge it, or build a new network")
    targets = expand_targets(network, config.target_modules)
    model = get_peft_model(network, peft_settings(config, targets, options))
    if generator is not None:
        for layer in _lora_layers(model):
            _draw(layer, generator)
    return model


def peft_settings(config: LoRAConfig, targets: list[str], options: Mapping[str, Any] | None = None) -> LoraConfig:
    """The settings as peft's own object, for the modules `targets` in full; `options` as in `add_lora`."""
    own = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    return LoraConfig(**own, target_modules=targets, bias="none", **(options or {}))


def _draw(layer: LoraLayer, generator: torch.Generator) -> None:
    for branch in layer.lora_A.values():
        values = torch.empty(branch.weight.shape)
        nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            branch.weight.copy_(values)


def _lora_layers(model: nn.Module) -> Iterator[LoraLayer]:
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def adapted_network(model: PeftModel) -> MMAudio:
    """The network inside, the object given to `add_lora`: it computes with the adapter."""
    network = model.get_base_model()
    assert isinstance(network, MMAudio)
    return network


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """A copy of the adapter's weights under the keys that PEFT saves."""
    return {key: value.detach().clone() for key, value in _references(model).items()}


def _references(model: PeftModel) -> dict[str, Tensor]:
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def load_adapter_state(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Sets the adapter's weights; raises WeightsError naming the first keys that do not fit."""
    check_keys(_references(model), state, "adapter")
    set_peft_model_state_dict(model, dict(state))


def set_strength(model: PeftModel, strength: float) -> None:
    """Scales the adapter's effect: 0 is the base, 1 as trained; a merge afterwards keeps the scale.

    Raises ConfigError below 0 and above MAX_STRENGTH.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise ConfigError(f"strength={strength:g}: from 0 (the base model) over 1 (as trained) to {MAX_STRENGTH:g}")
    for layer in _lora_layers(model):
        for name in layer.lora_A:
            layer.set_scale(name, strength)


def merge(model: PeftModel) -> MMAudio:
    """Adds the adapter to the base weights, in float32 on the CPU, and removes it: plain weights, the released keys.

    Uses up `model`; the network, the object given to `add_lora`, returns to its device, in float32. Raises WeightsError
    where the merged weights are not finite.
    """
    network = adapted_network(model)
    device = next(network.parameters()).device
    network.to("cpu", torch.float32)  # on a GPU the convolutions that merge may round to TF32
    try:
        model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise WeightsError("the adapter's weights are not finite: it is broken; take another checkpoint") from error
    return network.to(device)


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Counts the parameters of an adapted (or plain) network."""
    blocks: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = re.search(r"(joint|fused)_blocks\.\d+", name)
            blocks[found.group() if found else "other"] += parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCounts(total, sum(blocks.values()), dict(blocks))
