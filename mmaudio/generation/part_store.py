"""Finished parts of a long generation, so that one that was killed goes on from there.

    store = PartStore(folder, key)       # PartStore() holds the parts in memory
    store.put("latents", {"x": x})

A part is a few named tensors, on disk one safetensors file, written whole. The folder belongs to one request: the parts
of another `key` are removed, unless the store is `shared`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmaudio.errors import MMAudioError
from mmaudio.utils.files import atomic_write


class PartStore:
    """Named parts in memory or, with a folder, on disk."""

    def __init__(self, folder: Path | None = None, key: str = "", shared: bool = False) -> None:
        self.folder = None if folder is None else folder / key
        self._memory: dict[str, dict[str, Tensor]] = {}
        if folder is not None and self.folder is not None:
            for other in [path for path in folder.glob("*") if path.name != key and not shared]:
                shutil.rmtree(other, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, name: str) -> bool:
        return name in self._memory if self.folder is None else self._path(name).is_file()

    def get(self, name: str) -> dict[str, Tensor]:
        """The tensors of a part; KeyError where there is none, MMAudioError where it is damaged."""
        if self.folder is None:
            return self._memory[name]
        if name not in self:
            raise KeyError(name)
        try:
            tensors: dict[str, Tensor] = load_file(self._path(name))
        except (OSError, SafetensorError) as error:
            raise MMAudioError(f"{self._path(name)}: damaged ({error}); remove it, it is computed again") from error
        return tensors

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Add or replace a part; the tensors are on the CPU."""
        if self.folder is None:
            self._memory[name] = dict(tensors)
            return
        with atomic_write(self._path(name)) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)

    def clear(self) -> None:
        """Remove all parts, and the folder."""
        self._memory.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


def hash_settings(settings: Mapping[str, Any], paths: list[Path]) -> str:
    """A key of 16 hexadecimal digits for settings, and for files by their path, size and time."""
    files = []
    for path in paths:
        members = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [(str(member.resolve()), member.stat().st_size, member.stat().st_mtime_ns) for member in members]
    text = json.dumps([settings, files], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
