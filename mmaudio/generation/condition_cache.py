"""Kept features of videos: another prompt, seed, strength or adapter neither decodes nor encodes a video again.

    cache = ConditionCache.of_model("tiny_16k")
    store = cache.open(video)    # holds the windows that were encoded before
    cache.limit_size()

A folder per content of a video and encoders, one file per window, named by its beginning and duration. The folders that
were not used for the longest time are removed first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmaudio.features.encoders import CONDITION_ENCODERS, encoder_identities
from mmaudio.generation.conditions import VisualInput, window_names
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.windows import WindowGrid
from mmaudio.model.spec import CODECS, CodecSpec, model_spec
from mmaudio.weights.store import cache_folder, file_sha256

MAX_BYTES = 4 << 30
"""Size of all kept features: some eight hours of video for a released model."""
MIN_AGE_SECONDS = 600.0
"""Features that were used so recently stay: a process may still read them."""
FORMAT = 1
"""Raised where the same video gets other features."""


def default_folder() -> Path:
    """The folder of kept features where no other is named."""
    return cache_folder() / "conditions"


@dataclass(frozen=True)
class ConditionCache:
    """The kept features in `folder` by encoders of these identities."""

    folder: Path
    identities: Mapping[str, str]
    """Of what else than the video the features depend on, by name."""
    codec: CodecSpec = field(default_factory=lambda: CODECS["16k"])
    """Of the model: lengths of windows."""

    @classmethod
    def of_model(
        cls, model: str, weights: Path | None = None, device: torch.device | None = None, folder: Path | None = None
    ) -> ConditionCache:
        """The cache of a model's encoders; their rounding depends on the kind of `device`."""
        identities = encoder_identities(model, weights)
        encoders = {name: identities[name] for name in CONDITION_ENCODERS}
        kind = (device or torch.device("cpu")).type
        return cls(folder or default_folder(), encoders | {"device": kind}, model_spec(model).codec)

    def key(self, video: Path) -> str:
        """A hash of the video's content and of the encoders."""
        text = json.dumps([FORMAT, file_sha256(video), dict(self.identities)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def open(self, video: Path | None) -> PartStore | None:
        """The store of a video's features; None without a video, and where the folder cannot be written."""
        if video is None:
            return None
        try:
            store = PartStore(self.folder, self.key(video), shared=True)
            os.utime(self.folder / self.key(video))
        except OSError:
            return None
        return store

    def is_complete(self, visual: VisualInput, grid: WindowGrid) -> bool:
        """Whether nothing is to be encoded: all windows of the video are kept, or there is none."""
        if visual.video is None:
            return True
        key = self.key(visual.video)
        if not (self.folder / key).is_dir():
            return False
        store = PartStore(self.folder, key, shared=True)
        return all(name in store for name in window_names(visual, grid))

    def limit_size(self) -> None:
        """Remove the features that were not used for the longest time, down to MAX_BYTES."""
        sizes = measure(self.folder)
        excess = sum(sizes.values()) - MAX_BYTES
        for path in sorted(sizes, key=lambda path: path.stat().st_mtime):
            if excess <= 0 or time.time() - path.stat().st_mtime < MIN_AGE_SECONDS:
                return
            shutil.rmtree(path, ignore_errors=True)
            excess -= sizes[path]


def measure(folder: Path) -> dict[Path, int]:
    """Bytes of each video's features in `folder`."""
    sizes = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        with suppress(OSError):  # another process removes it
            if path.is_dir() and len(path.name) == 32:
                sizes[path] = sum(file.stat().st_size for file in path.iterdir())
    return sizes


def remove_all(folder: Path) -> None:
    """Remove all kept features in `folder`, and nothing else."""
    for path in measure(folder):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # something else is in it, or there is none
        folder.rmdir()
