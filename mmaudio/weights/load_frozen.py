"""From a weights file to a module that computes: built without values, then filled from the file where it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from mmaudio.model.state_dict import Released
from mmaudio.weights import store as weights

M = TypeVar("M", bound=Released)


def load_frozen(
    build: Callable[[], M], model: str, part: str, folder: Path | None = None, device: torch.device | str = "cpu"
) -> M:
    """What `build` makes, with the weights of `part` of `model`, on `device`, frozen and in evaluation mode.

    On a CPU its values are the memory-mapped file: pages that nobody needs are never read, and writing to a value
    makes a private copy of its page. Raises WeightsError where the file is missing or does not fit.
    """
    found = weights.load_part(model, part, folder)
    with torch.device("meta" if found.state else "cpu"):  # a part without weights computes its values itself
        module = build()
    module.load_released(found.state)
    module.to(device).eval().requires_grad_(False)
    return module
