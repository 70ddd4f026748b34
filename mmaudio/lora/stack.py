"""Several adapters at once: the network with the sum of their changes, each at its strength.

    stack = read_stack([("dogs.pt", 0.7), ("rain.pt", "joint=1,fused=0.5")])
    stack.check("small_16k")                       # before weights are read
    adapted = stack.attach(network, "small_16k")   # set_strength(adapted, s) scales the sum

An adapter's change is the difference between the network with that adapter alone, merged at its strength, and the base.
So every kind adds up: LoRA and rsLoRA of any rank, PiSSA, DoRA (whose magnitudes are taken against the base alone),
biases, and full fine-tuning. The changes are added in an order that depends on the adapters' contents alone: the order
in which they are named makes no difference, not even in rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmaudio.errors import ConfigError, WeightsError
from mmaudio.lora import base_values
from mmaudio.lora.adapter import merge, set_strength
from mmaudio.lora.checkpoint import AdapterFile, attach_adapter, check_base, check_fit, read_adapter
from mmaudio.lora.hub_adapter import fetch_adapter, parse_hub_name
from mmaudio.lora.peft_layers import KEY_PREFIX, lora_layers
from mmaudio.lora.strength import AS_TRAINED, Strength, parse_strength
from mmaudio.model.networks import MMAudio
from mmaudio.utils.tensor_checksum import tensors_sha256


@dataclass(frozen=True)
class StackedAdapter:
    """An adapter and its strength."""

    path: Path
    strength: Strength
    file: AdapterFile

    def sort_key(self) -> tuple[str, str, str]:
        """Depends on what the adapter computes, not on where it lies."""
        return tensors_sha256(self.file.state, {}), repr(self.file.lora), str(self.strength)


@dataclass(frozen=True)
class AdapterStack:
    """One adapter or several, for one base model."""

    adapters: tuple[StackedAdapter, ...]

    @property
    def base_model(self) -> str:
        """The base model that an adapter names, or the only one that the shapes of all fit; else empty."""
        named = [adapter.file.base_model for adapter in self.adapters if adapter.file.base_model]
        return named[0] if named else (self.possible_models[0] if len(self.possible_models) == 1 else "")

    @property
    def possible_models(self) -> tuple[str, ...]:
        """Base models that the shapes of all adapters fit, if no file names one."""
        first, *others = [adapter.file.possible_models for adapter in self.adapters]
        return tuple(model for model in first if all(model in models for models in others))

    @property
    def kinds(self) -> str:
        """Kinds of the adapters, such as `LoRA and DoRA`."""
        return " and ".join(adapter.file.lora.method_name for adapter in self.adapters)

    def check(self, model: str, base_sha256: str = "", network: nn.Module | None = None) -> None:
        """Raise WeightsError for an adapter of another base model, or that does not fit `network`, with its path."""
        for adapter in self.adapters:
            with self._naming(adapter):
                check_base(adapter.file, model, base_sha256)
                if network is not None:
                    check_fit(adapter.file, network, model)

    def attach(self, network: MMAudio, model: str, base_sha256: str = "") -> nn.Module:
        """The loaded network of the base model with the adapters at their strengths, in place, in eval mode.

        `set_strength` replaces the strength of a single adapter, and scales the sum of several. Raises as `check`.
        """
        if len(self.adapters) == 1:
            adapted = attach_adapter(network, self.adapters[0].file, model, base_sha256)
            set_strength(adapted, self.adapters[0].strength)
            return adapted
        self.check(model, base_sha256, network)
        acting = [adapter for adapter in self.adapters if not adapter.strength.is_zero]
        base: dict[str, Tensor] = {}
        total: dict[str, Tensor] = {}
        for adapter in sorted(acting, key=StackedAdapter.sort_key):
            with self._naming(adapter):
                for name, (value, change) in _find_changes(network, adapter, model).items():
                    base[name] = value
                    total[name] = total[name] + change if name in total else change
        parameters = dict(network.named_parameters())
        for name, change in total.items():
            parameters[name].data = (base[name] + change).to(parameters[name].device)
        base_values.record_base(network, base)
        return network.eval().requires_grad_(False)

    def to_json(self) -> list[dict[str, float | str]]:
        """File names and strengths, as stored in results."""
        return [{"adapter": adapter.path.name, "strength": adapter.strength.plain()} for adapter in self.adapters]

    @contextmanager
    def _naming(self, adapter: StackedAdapter) -> Iterator[None]:
        """Begin errors with the adapter's path, where there are several."""
        try:
            yield
        except WeightsError as error:
            raise error if len(self.adapters) == 1 else WeightsError(f"{adapter.path}: {error}") from error


def read_stack(pairs: Iterable[tuple[Path, Strength]], offline: bool = True) -> AdapterStack:
    """Read adapters; WeightsError as `read_adapter` and for different base models, ConfigError for one named twice.

    Those that are on the hub are fetched, unless `offline`.
    """
    pairs = list(pairs)
    for index, (path, _) in enumerate(pairs):
        if path.resolve() in [other.resolve() for other, _ in pairs[:index]]:
            raise ConfigError(f"{path}: this adapter is named twice; name it once, with one strength")
    for path, _ in pairs:
        fetch_adapter(path, offline)
    adapters = [StackedAdapter(path, strength, read_adapter(path)) for path, strength in pairs]
    for attribute, label in (("base_model", ""), ("base_sha256", "network of SHA-256 ")):
        named = [(adapter.path, getattr(adapter.file, attribute)) for adapter in adapters]
        named = [(path, f"{label}{base[:12]}") for path, base in named if base]
        for path, base in named[1:]:
            if base != named[0][1]:
                raise WeightsError(
                    f"{path}: it was trained on {base}, and {named[0][0]} on {named[0][1]}; adapters add up where "
                    "they have the same base model"
                )
    return AdapterStack(tuple(adapters))


def adapter_name(path: Path) -> str:
    """A name for an adapter: its experiment's, the repository's on the hub, else its file's without the suffix."""
    if name := parse_hub_name(path):
        return name.repository.split("/")[1]
    path = path.resolve()
    return path.parent.parent.name if path.parent.name == "lora_checkpoints" else path.stem


def pair_strengths(
    paths: Sequence[Path], strengths: Sequence[str], flag: str = "--adapter"
) -> list[tuple[Path, Strength]]:
    """The adapters of a command line with their strengths: none, or one for each, in the order of the adapters.

    Raises ConfigError for other numbers of strengths, and for an invalid one.
    """
    if strengths and not paths:
        raise ConfigError(f"--strength {strengths[0]}: there is no {flag} that it could be the strength of")
    if strengths and len(strengths) != len(paths):
        example = " ".join(f"{flag} {path} --strength {strengths[0]}".lstrip() for path in paths[:2])
        raise ConfigError(
            f"{len(paths)} adapters and {len(strengths)} --strength: give one for each, as in {example}, or none, "
            "which is 1 for each"
        )
    try:
        values = [parse_strength(text) for text in strengths] or [AS_TRAINED] * len(paths)
    except ConfigError as error:
        raise ConfigError("--" + str(error).replace("=", " ", 1)) from None
    return list(zip(paths, values, strict=True))


def _find_changes(network: MMAudio, adapter: StackedAdapter, model: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Base value and change of every parameter that the adapter changes; the network stays the base model."""
    adapted = attach_adapter(network, adapter.file, model)
    set_strength(adapted, adapter.strength)
    base = {f"{name}.weight": layer.get_base_layer().weight for name, layer in lora_layers(adapted).items()}
    for name, value in base_values.get(adapted).base.items():
        base[name.removeprefix(KEY_PREFIX).replace(".base_layer.", ".")] = value
    base = {name: value.detach().to(torch.float32, copy=True) for name, value in base.items()}
    parameters, changes = dict(merge(adapted).named_parameters()), {}
    for name, parameter in parameters.items():
        if name in base:
            value = base[name].to(parameter.device)
            changes[name] = value, parameter.detach() - value
            parameter.data = value
    return changes
