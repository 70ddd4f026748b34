"""Checksums of a feature shard in its metadata: CRC-32 of the header and of every row, which rows are read by.

Shards of version 0.1.0 have none: there is nothing to check them by.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ENTRY = "crc32"
"""Entry of the metadata: JSON with eight hexadecimal digits for each row of every tensor, and for the other entries."""
HEADER = ""
"""Key of the other entries' checksum."""


@dataclass(frozen=True)
class RowChecksums:
    """Checksums of a shard."""

    digits: Mapping[str, str]
    """Eight digits per row, by tensor; empty where the shard has none."""

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> RowChecksums:
        """Those in a shard's metadata; ValueError where the metadata itself is damaged."""
        digits = json.loads(metadata.get(ENTRY, "{}"))
        if not isinstance(digits, dict) or (digits and digits.get(HEADER) != metadata_digits(metadata)):
            raise ValueError("the checksum of the header is wrong")
        return cls(digits)

    def is_intact(self, name: str, row: int, values: Tensor) -> bool:
        """Whether the values of row number `row` of a tensor are those that were written."""
        expected = self.digits.get(name, "")[8 * row : 8 * row + 8]
        return not self.digits or expected == row_digits(values)


def row_digits(values: Tensor) -> str:
    """Eight hexadecimal digits for a row, float32."""
    return f"{zlib.crc32(values.contiguous().view(-1).view(torch.uint8).numpy().data):08x}"


def metadata_digits(metadata: Mapping[str, str]) -> str:
    """Eight hexadecimal digits for the metadata without the checksums."""
    other_entries = sorted((name, text) for name, text in metadata.items() if name != ENTRY)
    return f"{zlib.crc32(json.dumps(other_entries).encode()):08x}"
