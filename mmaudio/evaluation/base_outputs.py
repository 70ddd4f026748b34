"""Kept outputs of base models: another evaluation of the same features samples the base no second time.

One file per model, features and settings below the cache folder; the files that were not used for the longest time are
removed first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from mmaudio.data.feature_set import FeatureSet
from mmaudio.errors import MMAudioError
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.output_files import read_outputs, write_outputs
from mmaudio.utils.tensor_checksum import tensors_sha256
from mmaudio.weights.store import cache_folder

VERSION = 3
"""Raised whenever the same inputs give other outputs."""
MAX_BYTES = 256 << 20
"""Size of all kept outputs: those of some 10 000 clips of 8 s."""


def default_folder() -> Path:
    """The folder of kept outputs."""
    return cache_folder() / "base_outputs"


def kept_file(base_sha256: str, features: FeatureSet, config: EvaluationConfig) -> Path:
    """The file for the outputs of a base network on some clips: named by everything that they depend on."""
    settings = {
        "version": VERSION,
        "base": base_sha256,
        "clips": [[clip.id, clip.caption, clip.seconds] for clip in features.clips],
        "sampling": asdict(replace(config.sampling, batch_size=None)),
        "metrics": config.metrics,
        "device": [config.device.type, str(config.dtype)],
    }
    checksum = tensors_sha256(features.tensors(), {"settings": json.dumps(settings)})
    return default_folder() / f"{hashlib.sha256(checksum.encode()).hexdigest()[:32]}.safetensors"


def read_kept(file: Path) -> dict[str, Tensor] | None:
    """The outputs in a file, which counts as used from here on; None where there are none."""
    outputs = read_outputs(file)
    if outputs is not None:
        with suppress(OSError):
            os.utime(file)
    return outputs


def keep(file: Path, outputs: Mapping[str, Tensor]) -> None:
    """Keep outputs, and remove the oldest ones beyond MAX_BYTES; nothing happens where the folder cannot be written."""
    with suppress(OSError, MMAudioError):
        write_outputs(file, outputs)
        newest_first = sorted(file.parent.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime)
        total = 0
        for path in newest_first:
            total += path.stat().st_size
            if total > MAX_BYTES and path != file:
                path.unlink(missing_ok=True)
