"""Files of what a network gave, from which an interrupted evaluation resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmaudio.utils.files import atomic_write


def read_outputs(file: Path) -> dict[str, Tensor] | None:
    """The tensors of an earlier run; None where there is no file, or a damaged one."""
    try:
        outputs: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError):
        return None
    return outputs


def write_outputs(file: Path, outputs: Mapping[str, Tensor]) -> None:
    """Write tensors atomically."""
    with atomic_write(file) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, temporary)
