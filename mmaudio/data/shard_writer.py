"""Writing a safetensors file row by row, so that the features of a long video never lie in memory together.

The file gets its name when it is complete: one that exists is whole. Reading is `data.features`'s and safetensors' own.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from mmaudio.errors import DataError, MMAudioError

ABANDONED = 3600.0
"""Seconds after which a temporary file that nobody wrote to is left from a process that was killed."""
ITEM = 4
"""Bytes of a float32."""


class ShardWriter:
    """A file of float32 tensors in the making; `with ShardWriter(...) as writer:` completes it or leaves nothing.

    Raises MMAudioError where the disk does not take it.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes`: of every tensor by name; the first number is the rows."""
        self.path, self.shapes = path, dict(shapes)
        self._missing = {(name, row) for name, shape in shapes.items() for row in range(shape[0])}
        self._part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        entries: dict[str, object] = {"__metadata__": dict(metadata)}
        self._places: dict[str, int] = {}
        end = 0
        for name, shape in shapes.items():
            self._places[name], end = end, end + math.prod(shape) * ITEM
            entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [self._places[name], end]}
        stated = json.dumps(entries, separators=(",", ":")).encode()
        stated += b" " * (-len(stated) % 8)
        self._head = len(stated).to_bytes(8, "little") + stated
        self._size = len(self._head) + end
        self._file: BinaryIO | None = None

    def put(self, name: str, row: int, values: Tensor) -> None:
        """Write row number `row` of a tensor; DataError where its values are not finite."""
        assert self._file is not None and tuple(values.shape) == self.shapes[name][1:], (name, values.shape)
        if not torch.isfinite(values).all():
            raise DataError(f"its {name} come out as values that are not finite")
        content = values.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        try:
            self._file.seek(len(self._head) + self._places[name] + row * len(content))
            self._file.write(content)
        except OSError as error:
            raise self._unwritable(error) from error
        self._missing.discard((name, row))

    def __enter__(self) -> ShardWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb")
            self._file.write(self._head)
            self._file.truncate(self._size)
        except OSError as error:
            self._drop()
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._drop()
            return
        assert self._file is not None and not self._missing, f"{len(self._missing)} rows were not written"
        try:
            self._file.close()
            self._part.replace(self.path)
        except OSError as failure:
            self._drop()
            raise self._unwritable(failure) from failure

    def _drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what it could not write is not wanted any more
                self._file.close()
            self._part.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> MMAudioError:
        return MMAudioError(
            f"{self.path}: cannot be written ({error.strerror}). Make room or choose another folder; "
            "the same command goes on from here"
        )


def sweep(folder: Path) -> None:
    """Remove temporary files that a kill left."""
    for part in folder.glob(".*.part"):
        try:
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
        except FileNotFoundError:  # another process has just finished, or swept it
            continue
