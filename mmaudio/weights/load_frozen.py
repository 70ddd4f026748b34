"""Loading of a frozen module: built on the meta device, then filled from its memory-mapped weights file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from mmaudio.model.state_dict import ReleasedModule
from mmaudio.utils.progress import working
from mmaudio.weights import store as weights

M = TypeVar("M", bound=ReleasedModule)


def load_frozen(
    build: Callable[[], M], model: str, component: str, folder: Path | None = None, device: torch.device | str = "cpu"
) -> M:
    """Build a module with `build` and load `component` of `model`: on `device`, frozen, in evaluation mode.

    On a CPU the parameters are the memory-mapped file: unused pages are never read, and writing to a parameter makes a
    private copy of its page. Raises WeightsError where the file is missing or does not fit.
    """
    with working(f"loading the {component} of {model}"):
        return _load_frozen(build, model, component, folder, device)


def _load_frozen(
    build: Callable[[], M], model: str, component: str, folder: Path | None, device: torch.device | str
) -> M:
    loaded = weights.load_weights(model, component, folder)
    with torch.device("meta" if loaded.state_dict else "cpu"):  # a component without weights computes its buffers
        module = build()
    module.load_released(loaded.state_dict)
    module.to(device).eval().requires_grad_(False)
    return module
