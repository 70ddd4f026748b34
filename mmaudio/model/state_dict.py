"""Putting a released state dict into a module: keys are reconciled by name, and nothing is left unsaid.

A module on the meta device takes the given tensors themselves (memory-mapped ones stay so, and are read when they are
first needed); a module with values of its own gets copies.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from mmaudio.errors import WeightsError

SHOWN = 3
"""How many keys an error lists of each kind."""
ALIKE = 0.5
"""Share of keys that have to fit for a file to be called most like a variant."""


def why_not(error: Exception) -> str:
    """Why torch or safetensors could not read a file, in one line, without torch's advice to trust it."""
    if isinstance(error, pickle.UnpicklingError):
        return "no file of weights, or one that holds other things too"
    return str(error).split("\n")[0] or type(error).__name__


class Released(nn.Module):
    """A module that loads a released file."""

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load `state`; on the meta device its tensors become the module's own. WeightsError where it does not fit."""
        raise NotImplementedError


Variants = Mapping[str, Callable[[], nn.Module]]
"""What else a file might be for, by name; built on the meta device where a file does not fit."""


def is_meta(module: nn.Module) -> bool:
    """Whether the module still waits for its values."""
    return any(parameter.is_meta for parameter in module.parameters())


def load_reconciled(
    module: nn.Module,
    state: Mapping[str, Tensor],
    what: str,
    ignored: Iterable[str] = (),
    variants: Variants | None = None,
) -> None:
    """Load `state`, in the module's types; keys that begin with a prefix in `ignored` are left out.

    Raises WeightsError that lists the first missing, unexpected or ill-shaped keys, and which of the `variants` they
    are likely for; the module is untouched then.
    """
    prefixes = tuple(ignored)
    given = {key: value for key, value in state.items() if not (prefixes and key.startswith(prefixes))}
    own = module.state_dict()
    check_keys(own, given, what, variants)
    if not is_meta(module):
        module.load_state_dict(given)
        return
    values = {key: value.detach().to(own[key].dtype).contiguous() for key, value in given.items()}
    module.load_state_dict(values, assign=True)


def check_keys(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str, variants: Variants | None = None
) -> None:
    """Raises WeightsError naming the first few keys that are missing, unexpected or of another shape."""
    found = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [
            f"{key} {tuple(given[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own
            if key in given and given[key].shape != own[key].shape
        ],
    }
    faults = [f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in found.items() if keys]
    if faults:
        likely = likely_variant(own, given, variants or {})
        end = likely or "check the model's name and the file"
        raise WeightsError(f"{what} weights of another model: {'; '.join(faults)}; {end}")


def likely_variant(own: Mapping[str, Tensor], given: Mapping[str, Tensor], variants: Variants) -> str:
    """Which variant has the shapes of `given`, in words; empty where none fits better than `own`."""
    best, name = max(ALIKE, _alike(own, given)), ""
    for variant, build in variants.items():
        with torch.device("meta"):
            alike = _alike(build().state_dict(), given)
        if alike > best:
            best, name = alike, variant
    if not name:
        return ""
    return f"these are the shapes of {name}" if best == 1 else f"most of its shapes are those of {name}"


def _alike(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> float:
    fitting = sum(key in own and own[key].shape == value.shape for key, value in given.items())
    return fitting / max(1, len(own.keys() | given.keys()))


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
