"""Writer of a safetensors file row by row, so that the features of a long video never lie in memory together.

The file gets its name when it is complete, with a checksum of every row. `data.feature_store` and safetensors itself
read it.
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

from mmaudio.data.row_checksums import ENTRY, HEADER, metadata_digits, row_digits
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
        self._partial = temporary_path(path)
        self._digits: dict[tuple[str, int], str] = {}
        """Checksums of the rows that are written."""
        self._metadata = dict(metadata)
        self._offsets: dict[str, int] = {}
        end = 0
        for name, shape in shapes.items():
            self._offsets[name], end = end, end + math.prod(shape) * FLOAT32_BYTES
        self._header_size = len(self._render_header())
        self._size = self._header_size + end
        self._file: BinaryIO | None = None

    def _render_header(self) -> bytes:
        """The file's header, of the same length whichever rows are written; missing rows have the checksum 0."""
        rows = {name: range(shape[0]) for name, shape in self.shapes.items()}
        digits = {name: "".join(self._digits.get((name, row), "0" * 8) for row in rows[name]) for name in rows}
        checksums = json.dumps({HEADER: metadata_digits(self._metadata), **digits})
        entries: dict[str, object] = {"__metadata__": {**self._metadata, ENTRY: checksums}}
        for name, shape in self.shapes.items():
            start = self._offsets[name]
            end = start + math.prod(shape) * FLOAT32_BYTES
            entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        content = json.dumps(entries, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)
        return len(content).to_bytes(8, "little") + content

    def write_row(self, name: str, row: int, values: Tensor) -> None:
        """Write row number `row` of a tensor; DataError where its values are not finite."""
        assert self._file is not None and tuple(values.shape) == self.shapes[name][1:], (name, values.shape)
        if not torch.isfinite(values).all():
            raise DataError(f"its {name} come out as values that are not finite")
        values = values.detach().to("cpu", torch.float32).contiguous()
        content = values.numpy().tobytes()
        try:
            self._file.seek(self._header_size + self._offsets[name] + row * len(content))
            self._file.write(content)
        except OSError as error:
            raise self._unwritable_error(error) from error
        self._digits[name, row] = row_digits(values)

    def __enter__(self) -> ShardWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
            self._file.truncate(self._size)
        except OSError as error:
            self._discard()
            raise self._unwritable_error(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        missing = sum(shape[0] for shape in self.shapes.values()) - len(self._digits)
        if error is not None or missing:
            self._discard()
            assert error is not None, f"{missing} rows were not written"
            return
        assert self._file is not None
        try:
            self._file.seek(0)
            self._file.write(self._render_header())
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
