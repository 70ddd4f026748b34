"""Strict loading of released state dicts, with errors that name missing, unexpected and mismatched keys.

A module on the meta device takes the tensors themselves, so memory-mapped ones are read on first use; any other module
gets copies.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from mmaudio.errors import WeightsError

MAX_KEYS_SHOWN = 3
"""Number of keys of each kind that an error lists."""
MIN_MATCH = 0.5
"""Share of keys that has to match for an error to name a variant."""

PICKLE_ERRORS = (LookupError, TypeError, AttributeError, AssertionError, struct.error)
"""Errors of torch's own unpickler for bytes that are no pickle, beside UnpicklingError."""
LOAD_ERRORS = (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, *PICKLE_ERRORS)
"""Errors of `torch.load` for files that torch.save did not write, or that are damaged."""


def read_failure(error: Exception) -> str:
    """Reason why torch or safetensors could not read a file, in one line, without torch's advice on trust."""
    if isinstance(error, (pickle.UnpicklingError, *PICKLE_ERRORS)) or "weights_only" in str(error):
        return "not a file of weights, or one with other objects in it"
    return str(error).split("\n")[0] or type(error).__name__


class ReleasedModule(nn.Module):
    """Base class of modules that load a released file."""

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load `state`; a module on the meta device takes its tensors. WeightsError if it does not fit."""
        raise NotImplementedError


Variants = Mapping[str, Callable[[], nn.Module]]
"""Other modules that a file may belong to, by name; built on the meta device for an error message."""


def is_meta(module: nn.Module) -> bool:
    """Whether any parameter is on the meta device."""
    return any(parameter.is_meta for parameter in module.parameters())


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    label: str,
    ignored_prefixes: Iterable[str] = (),
    variants: Variants | None = None,
) -> None:
    """Load `state` in the module's dtypes, without the keys that start with one of `ignored_prefixes`.

    Raises WeightsError with the first missing, unexpected or mismatched keys and the most similar of the `variants`;
    the module is unchanged then.
    """
    prefixes = tuple(ignored_prefixes)
    state = {key: value for key, value in state.items() if not (prefixes and key.startswith(prefixes))}
    expected = module.state_dict()
    check_keys(expected, state, label, variants)
    if not is_meta(module):
        module.load_state_dict(state)
        return
    values = {key: value.detach().to(expected[key].dtype).contiguous() for key, value in state.items()}
    module.load_state_dict(values, assign=True)


def check_keys(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], label: str, variants: Variants | None = None
) -> None:
    """Raise WeightsError with the first keys that are missing, unexpected or of another shape."""
    differences = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
    }
    problems = [f"{len(keys)} {kind} ({_list_first(keys)})" for kind, keys in differences.items() if keys]
    if problems:
        hint = describe_closest_variant(expected, state, variants or {}) or "check the model's name and the file"
        raise WeightsError(f"{label} weights of another model: {'; '.join(problems)}; {hint}")


def describe_closest_variant(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], variants: Variants) -> str:
    """Name the variant whose shapes match `state` best; empty if none matches better than `expected`."""
    best_match, name = max(MIN_MATCH, _match(expected, state)), ""
    for variant, build in variants.items():
        with torch.device("meta"):
            match = _match(build().state_dict(), state)
        if match > best_match:
            best_match, name = match, variant
    if not name:
        return ""
    return f"these are the shapes of {name}" if best_match == 1 else f"most of its shapes are those of {name}"


def _match(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> float:
    """Share of the keys of both that agree in name and shape."""
    matches = sum(key in expected and expected[key].shape == value.shape for key, value in state.items())
    return matches / max(1, len(expected.keys() | state.keys()))


def _list_first(keys: list[str]) -> str:
    return ", ".join(keys[:MAX_KEYS_SHOWN]) + (", ..." if len(keys) > MAX_KEYS_SHOWN else "")
