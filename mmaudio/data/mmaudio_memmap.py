"""Features extracted by the public MMAudio code as training input: a TensorDict memory map and its table.

    train = load_memmap(Path("vgg"), "train", "small_16k")

A memory map is a folder with `meta.json` (name, shape and type of every tensor) and a `.memmap` file of plain numbers
per tensor. Its table, `<folder>.tsv` beside it or any one `.tsv` in it, has a row per clip: id and caption or label.

Legend: K clips, N latent tokens, C latent channels, V CLIP frames, S sync tokens, L text tokens.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmaudio.data.clips import SPLITS, Clip, clips_of_split
from mmaudio.data.feature_set import FEATURE_NAMES, Features, FeatureSet, LazyFeatureSet, build_lazy_feature_set
from mmaudio.data.feature_store import EmptySplitError
from mmaudio.errors import DataError
from mmaudio.model.spec import CLIP_FPS, MODELS, ModelSpec, compute_lengths, model_spec
from mmaudio.utils.files import read_text

META_FILE = "meta.json"
HELD_OUT_DIVISOR = 10
"""Where no folder is named for a split, one clip in so many is held out, by the lowest hashes of their sources."""
WINDOW_SUFFIX = re.compile(r"[_-]\d+(\.\d+)?$")
"""End of the ids of windows of one source: a number, or the window's start."""
MIN_SOURCES = 3
"""With fewer sources than that, clips are held out one by one."""
CLIPS_PER_CHECK = 64
"""Clips that are tested together for values that are not finite."""


@dataclass(frozen=True)
class MemoryMap:
    """One memory map on disk, and the table of its clips."""

    folder: Path
    table: Path

    @property
    def split(self) -> str | None:
        """The split in the folder's name: `vgg-train` is train's; None where there is none."""
        words = re.split(r"[^a-z]+", self.folder.name.lower().replace("valid", "val"))
        return next((split for split in SPLITS if split in words), None)


def load_memmap(folder: Path, split: str, model: str) -> FeatureSet:
    """As `open_memmap`, in memory; the tensors of a single memory map that is used whole are that map itself."""
    return open_memmap(folder, split, model).load()


def open_memmap(folder: Path, split: str, model: str) -> LazyFeatureSet:
    """The clips of `split` (train, val or test) in `folder`, a memory map or a folder of some, for `model`.

    Folders whose names state a split (`vgg-train`, `vgg-val`) are that split's; where none does, a tenth of the clips
    is held out, all of a source (ids that differ in a number at their end) or none. With no clips for val those for
    test stand in, and the other way round. The tensors stay on disk until they are used. Raises DataError for what
    cannot be read, does not fit `model` or is not finite, and EmptySplitError for a split without clips.
    """
    maps = find_memory_maps(folder)
    clips_by_map = [_read_clips(memory_map) for memory_map in maps]
    if not any(memory_map.split for memory_map in maps):
        clips_by_map = _hold_out(clips_by_map)
    selected = clips_of_split([clip for clips in clips_by_map for clip in clips], split)
    if not selected:
        folders = ", ".join(memory_map.folder.name for memory_map in maps)
        raise EmptySplitError(f"{folder}: no {split} clip in it ({folders})")
    rows_by_map = [[row for row, clip in enumerate(clips) if clip.split == selected[0].split] for clips in clips_by_map]
    used = [(memory_map, rows) for memory_map, rows in zip(maps, rows_by_map, strict=True) if rows]
    shards = [_open_features(memory_map.folder, model_spec(model)) for memory_map, _ in used]
    features = build_lazy_feature_set(shards, [rows for _, rows in used], selected, model)
    _check_finite(features, folder)
    return features


def find_memory_maps(folder: Path) -> list[MemoryMap]:
    """`folder` itself where it is a memory map, else those in it; DataError where one or its table is missing."""
    if (folder / META_FILE).is_file():
        folders = [folder]
    else:
        folders = sorted(path.parent for path in folder.glob(f"*/{META_FILE}"))
    if not folders:
        raise DataError(
            f"{folder}: no memory map in it ({META_FILE} beside .memmap files), which is what the reference's "
            "extraction writes. Features of this program's own extraction train with custom_finetune=true"
        )
    return [MemoryMap(path, _find_table(path)) for path in folders]


def _find_table(folder: Path) -> Path:
    beside, inside = folder.with_name(f"{folder.name}.tsv"), sorted(folder.glob("*.tsv"))
    if beside.is_file():
        return beside
    if len(inside) != 1:
        raise DataError(f"{folder}: no table of its clips; {beside.name} is expected beside it")
    return inside[0]


def _read_clips(memory_map: MemoryMap) -> list[Clip]:
    """The clips of a memory map in its order; those of a folder that is named for no split are for training."""
    table, folder = memory_map.table, memory_map.folder
    text = io.StringIO(read_text(table), newline="")
    rows = list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_MINIMAL))
    if rows and "id" not in rows[0]:
        raise DataError(f"{table}: no column id; it has {', '.join(map(str, rows[0]))}")
    shapes = _read_shapes(folder)
    if len(rows) != shapes["mean"][0]:
        raise DataError(f"{table}: {len(rows)} clips, {folder.name} has features of {shapes['mean'][0]}")
    seconds = shapes["clip_features"][1] / CLIP_FPS
    return [
        Clip(
            id=row["id"],
            video=WINDOW_SUFFIX.sub("", row["id"]),
            start=0.0,
            end=seconds,
            caption=row.get("caption") or row.get("label") or "",
            split=memory_map.split or "train",
            peak_db=0.0,
            rms_db=0.0,
            silence=0.0,
        )
        for row in rows
    ]


def _hold_out(clips_by_map: list[list[Clip]]) -> list[list[Clip]]:
    """The same with a tenth of the clips, one at least and never all, for val."""
    clips_by_id = {clip.id: clip for clips in clips_by_map for clip in clips}
    by_source: dict[str, set[str]] = {}
    for clip in clips_by_id.values():
        by_source.setdefault(clip.video, set()).add(clip.id)
    if len(by_source) < MIN_SOURCES:
        by_source = {clip_id: {clip_id} for clip_id in clips_by_id}
    ranked = sorted(by_source, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    held_out: set[str] = set()
    for name in ranked[:-1]:
        held_out |= by_source[name]
        if len(held_out) >= max(1, len(clips_by_id) // HELD_OUT_DIVISOR):
            break
    return [[replace(clip, split="val") if clip.id in held_out else clip for clip in clips] for clips in clips_by_map]


def _read_meta(folder: Path) -> dict[str, Any]:
    """The entry of every tensor in `meta.json`; DataError where it is no memory map of features."""
    try:
        content = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        tensors = {name: content[name] for name in FEATURE_NAMES if name in content}
        for entry in tensors.values():
            if not all(isinstance(size, int) for size in entry["shape"]) or not isinstance(entry["dtype"], str):
                raise TypeError("shape or dtype")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / META_FILE}: cannot be read as a memory map's description ({error!r})") from error
    absent = [name for name in FEATURE_NAMES if name not in tensors]
    if absent:
        raise DataError(f"{folder}: no {', '.join(absent)} in it; training takes what was extracted from videos")
    return tensors


def _read_shapes(folder: Path) -> dict[str, list[int]]:
    return {name: entry["shape"] for name, entry in _read_meta(folder).items()}


def _open_features(folder: Path, model: ModelSpec) -> Features:
    """All features of a memory map; DataError where they do not fit `model`."""
    _check_shapes(folder, model)
    meta = _read_meta(folder)
    return Features(*(_open_tensor(folder / f"{name}.memmap", meta[name]) for name in FEATURE_NAMES))


def _check_shapes(folder: Path, model: ModelSpec) -> None:
    """DataError that names the models that fit where `model` does not."""
    shapes = {name: tuple(shape[1:]) for name, shape in _read_shapes(folder).items()}
    expected = _expected_shapes(model, shapes["clip_features"])
    wrong = [
        f"{name} {list(shapes[name])}, expected {list(expected[name])}"
        for name in FEATURE_NAMES
        if shapes[name] != expected[name]
    ]
    if wrong:
        fitting = [name for name, spec in MODELS.items() if _expected_shapes(spec, shapes["clip_features"]) == shapes]
        hint = f"; these are features for {', '.join(fitting)}" if fitting else ""
        raise DataError(f"{folder}: does not fit {model.name}: {'; '.join(wrong)}{hint}")


def _expected_shapes(model: ModelSpec, clip_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of one clip's features, for the duration that its CLIP frames state."""
    network = model.network
    length = compute_lengths(model.codec, max(1.0, clip_shape[0] / CLIP_FPS))
    latent = (length.latent_tokens, network.latent_dim)
    return {
        "mean": latent,
        "std": latent,
        "clip_features": (length.clip_tokens, network.clip_dim),
        "sync_features": (length.sync_tokens, network.sync_dim),
        "text_features": (network.text_tokens, network.text_dim),
    }


def _open_tensor(path: Path, entry: dict[str, Any]) -> Tensor:
    """A memory-mapped tensor; pages that are not read take no memory."""
    dtype = getattr(torch, entry["dtype"].removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DataError(f"{path}: {entry['dtype']}; features are floating-point numbers")
    count = math.prod(entry["shape"])
    size = path.stat().st_size if path.is_file() else -1
    if size != count * dtype.itemsize:
        state = "not there" if size < 0 else f"{size} bytes"
        raise DataError(f"{path}: {state}; {count * dtype.itemsize} bytes are expected. Copy it again")
    return torch.from_file(str(path), shared=False, size=count, dtype=dtype).reshape(entry["shape"])


def _check_finite(features: LazyFeatureSet, folder: Path) -> None:
    for name in FEATURE_NAMES:
        tensor = features.lazy_tensor(name)
        for first in range(0, len(features), CLIPS_PER_CHECK):
            rows = torch.arange(first, min(first + CLIPS_PER_CHECK, len(features)))
            if not torch.isfinite(tensor[rows]).all():
                raise DataError(f"{folder}: {name} holds values that are not finite, from clip {first} on")
