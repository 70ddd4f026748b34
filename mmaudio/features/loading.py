"""Loading a released state dict into a module of ours: keys are reconciled by name, and nothing is left unsaid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from mmaudio.errors import WeightsError

SHOWN = 4
"""How many keys an error lists."""


def load_reconciled(module: nn.Module, state: Mapping[str, Tensor], what: str, ignored: Iterable[str] = ()) -> None:
    """Copy `state` into `module`, cast to the module's types; keys that begin with a prefix in `ignored` are left out.

    Raises WeightsError that lists the first missing, unexpected or ill-shaped keys; the module is untouched then.
    """
    prefixes = tuple(ignored)
    given = {key: value for key, value in state.items() if not (prefixes and key.startswith(prefixes))}
    wanted = module.state_dict()
    misshaped = [
        f"{key} {tuple(value.shape)} instead of {tuple(wanted[key].shape)}"
        for key, value in given.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    found = {
        "missing": [key for key in wanted if key not in given],
        "unexpected": [key for key in given if key not in wanted],
        "another shape": misshaped,
    }
    problems = [f"{kind}: {_some(keys)}" for kind, keys in found.items() if keys]
    if problems:
        raise WeightsError(f"{what}: these weights are for another model ({'; '.join(problems)})")
    module.load_state_dict(given)


def _some(keys: list[str]) -> str:
    rest = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
