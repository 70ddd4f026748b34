"""Writer of a safetensors file row by row, so that the features of a long video never lie in memory together.

The file gets its name when it is complete. `data.feature_store` and safetensors itself read it.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from mmaudio.errors import DataError, MMAudioError
from mmaudio.utils.files import temporary_path

FLOAT32_BYTES = 4


class ShardWriter:
    """A file of float32 tensors being written; `with ShardWriter(...) as writer:` completes it or leaves nothing.

    Raises MMAudioError where the disk refuses it.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes`: of every tensor by name; the first dimension is the rows."""
        self.path, self.shapes = path, dict(shapes)
        self._missing = {(name, row) for name, shape in shapes.items() for row in range(shape[0])}
        self._partial = temporary_path(path)
        entries: dict[str, object] = {"__metadata__": dict(metadata)}
        self._offsets: dict[str, int] = {}
        end = 0
        for name, shape in shapes.items():
            self._offsets[name], end = end, end + math.prod(shape) * FLOAT32_BYTES
            entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [self._offsets[name], end]}
        content = json.dumps(entries, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)
        self._header = len(content).to_bytes(8, "little") + content
        self._size = len(self._header) + end
        self._file: BinaryIO | None = None

    def write_row(self, name: str, row: int, values: Tensor) -> None:
        """Write row number `row` of a tensor; DataError where its values are not finite."""
        assert self._file is not None and tuple(values.shape) == self.shapes[name][1:], (name, values.shape)
        if not torch.isfinite(values).all():
            raise DataError(f"its {name} come out as values that are not finite")
        content = values.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        try:
            self._file.seek(len(self._header) + self._offsets[name] + row * len(content))
            self._file.write(content)
        except OSError as error:
            raise self._unwritable_error(error) from error
        self._missing.discard((name, row))

    def __enter__(self) -> ShardWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
            self._file.write(self._header)
            self._file.truncate(self._size)
        except OSError as error:
            self._discard()
            raise self._unwritable_error(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or self._missing:
            self._discard()
            assert error is not None, f"{len(self._missing)} rows were not written"
            return
        assert self._file is not None
        try:
            self._file.close()
            self._partial.replace(self.path)
        except OSError as failure:
            self._discard()
            raise self._unwritable_error(failure) from failure

    def _discard(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # data that could not be flushed is thrown away
                self._file.close()
            self._partial.unlink(missing_ok=True)

    def _unwritable_error(self, error: OSError) -> MMAudioError:
        return MMAudioError(
            f"{self.path}: cannot be written ({error.strerror}). Make room or choose another folder; "
            "the same command continues from here"
        )
