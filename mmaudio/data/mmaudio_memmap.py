"""Features that the public reference's extraction wrote, as training input: a TensorDict memory map and its table.

    train = load_reference(Path("vgg"), "train", "small_16k")

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

from mmaudio.data.clips import SPLITS, Clip
from mmaudio.data.feature_store import TENSORS, Features, FeatureSet, NoClips, StoredSet, held_out_or, stored_set
from mmaudio.errors import DataError
from mmaudio.model.spec import CLIP_FPS, MODELS, ModelSpec, lengths, model_spec
from mmaudio.utils.files import read_text

META = "meta.json"
HELD_OUT = 10
"""Where no folder is named for a split, one clip in so many is held out, by the lowest hashes of their sources."""
NUMBERED = re.compile(r"[_-]\d+(\.\d+)?$")
"""How the ids of windows of one source end: with a number, or the window's start."""
FEWEST_SOURCES = 3
"""With fewer sources than that, clips are held out one by one."""
CHECKED_AT_ONCE = 64
"""Clips that are looked through together for values that are not finite."""


@dataclass(frozen=True)
class MemoryMap:
    """One memory map on disk, and the table of its clips."""

    folder: Path
    table: Path

    @property
    def split(self) -> str | None:
        """The split that the folder's name states: `vgg-train` is train's; None where it states none."""
        words = re.split(r"[^a-z]+", self.folder.name.lower().replace("valid", "val"))
        return next((split for split in SPLITS if split in words), None)


def load_reference(folder: Path, split: str, model: str) -> FeatureSet:
    """As `open_reference`, in memory; the tensors of a single memory map that is taken whole are that map itself."""
    return open_reference(folder, split, model).load()


def open_reference(folder: Path, split: str, model: str) -> StoredSet:
    """The clips of `split` (train, val or test) in `folder`, a memory map or a folder of some, for `model`.

    Folders whose names state a split (`vgg-train`, `vgg-val`) are that split's; where none does, a tenth of the clips
    is held out, all of a source (ids that differ in a number at their end) or none. With no clips for val those for
    test stand in, and the other way round. The tensors stay on disk until they are used. Raises DataError for what
    cannot be read, does not fit `model` or is not finite, and NoClips for a split without clips.
    """
    maps = find_maps(folder)
    read = [(found, _clips(found)) for found in maps]
    if not any(found.split for found in maps):
        read = _held_out(read)
    chosen = held_out_or([clip for _, clips in read for clip in clips], split)
    if not chosen:
        raise NoClips(f"{folder}: no {split} clip in it ({', '.join(found.folder.name for found in maps)})")
    rows = [[number for number, clip in enumerate(clips) if clip.split == chosen[0].split] for _, clips in read]
    used = [(found, own) for (found, _), own in zip(read, rows, strict=True) if own]
    parts = [_mapped_features(found.folder, model_spec(model)) for found, _ in used]
    stored = stored_set(parts, [own for _, own in used], chosen, model)
    _check_finite(stored, folder)
    return stored


def find_maps(folder: Path) -> list[MemoryMap]:
    """`folder` itself where it is a memory map, else those in it; DataError where there is none or a table lacks."""
    places = [folder] if (folder / META).is_file() else sorted(path.parent for path in folder.glob(f"*/{META}"))
    if not places:
        raise DataError(
            f"{folder}: no memory map in it ({META} beside .memmap files), which is what the reference's extraction "
            "writes. Features of this program's own extraction train with custom_finetune=true"
        )
    return [MemoryMap(place, _table(place)) for place in places]


def _table(place: Path) -> Path:
    beside, inside = place.with_name(f"{place.name}.tsv"), sorted(place.glob("*.tsv"))
    if beside.is_file():
        return beside
    if len(inside) != 1:
        raise DataError(f"{place}: no table of its clips; {beside.name} is expected beside it")
    return inside[0]


def _clips(found: MemoryMap) -> list[Clip]:
    """The clips of a memory map in its order; those of a folder that is named for no split are to train."""
    text = io.StringIO(read_text(found.table), newline="")
    rows = list(csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_MINIMAL))
    if rows and "id" not in rows[0]:
        raise DataError(f"{found.table}: no column id; it has {', '.join(map(str, rows[0]))}")
    shapes = _shapes(found.folder)
    if len(rows) != shapes["mean"][0]:
        raise DataError(f"{found.table}: {len(rows)} clips, {found.folder.name} has features of {shapes['mean'][0]}")
    seconds = shapes["clip_features"][1] / CLIP_FPS
    return [
        Clip(
            id=row["id"],
            video=NUMBERED.sub("", row["id"]),
            start=0.0,
            end=seconds,
            caption=row.get("caption") or row.get("label") or "",
            split=found.split or "train",
            peak_db=0.0,
            rms_db=0.0,
            silence=0.0,
        )
        for row in rows
    ]


def _held_out(read: list[tuple[MemoryMap, list[Clip]]]) -> list[tuple[MemoryMap, list[Clip]]]:
    """The same with a tenth of the clips, one at least and never all, for val."""
    clips = {clip.id: clip for _, own in read for clip in own}
    by_source: dict[str, set[str]] = {}
    for clip in clips.values():
        by_source.setdefault(clip.video, set()).add(clip.id)
    if len(by_source) < FEWEST_SOURCES:
        by_source = {name: {name} for name in clips}
    ranked = sorted(by_source, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    held: set[str] = set()
    for name in ranked[:-1]:
        held |= by_source[name]
        if len(held) >= max(1, len(clips) // HELD_OUT):
            break
    return [(found, [replace(clip, split="val") if clip.id in held else clip for clip in own]) for found, own in read]


def _meta(folder: Path) -> dict[str, Any]:
    """What `meta.json` says of every tensor; DataError where it is no memory map of features."""
    try:
        stated = json.loads((folder / META).read_text(encoding="utf-8"))
        tensors = {name: stated[name] for name in TENSORS if name in stated}
        for entry in tensors.values():
            if not all(isinstance(size, int) for size in entry["shape"]) or not isinstance(entry["dtype"], str):
                raise TypeError("shape or dtype")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / META}: cannot be read as a memory map's description ({error!r})") from error
    absent = [name for name in TENSORS if name not in tensors]
    if absent:
        raise DataError(f"{folder}: no {', '.join(absent)} in it; training takes what was extracted from videos")
    return tensors


def _shapes(folder: Path) -> dict[str, list[int]]:
    return {name: entry["shape"] for name, entry in _meta(folder).items()}


def _mapped_features(folder: Path, model: ModelSpec) -> Features:
    """All features of a memory map; DataError where they do not fit `model`."""
    _check_shapes(folder, model)
    meta = _meta(folder)
    return Features(*(_mapped(folder / f"{name}.memmap", meta[name]) for name in TENSORS))


def _check_shapes(folder: Path, model: ModelSpec) -> None:
    """DataError that names the models that fit where `model` does not."""
    shapes = {name: tuple(shape[1:]) for name, shape in _shapes(folder).items()}
    expected = _expected(model, shapes["clip_features"])
    wrong = [
        f"{name} {list(shapes[name])}, expected {list(expected[name])}"
        for name in TENSORS
        if shapes[name] != expected[name]
    ]
    if wrong:
        fitting = [name for name, spec in MODELS.items() if _expected(spec, shapes["clip_features"]) == shapes]
        hint = f"; these are features for {', '.join(fitting)}" if fitting else ""
        raise DataError(f"{folder}: does not fit {model.name}: {'; '.join(wrong)}{hint}")


def _expected(model: ModelSpec, stills: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of one clip's features, for the duration that its CLIP frames state."""
    network = model.network
    size = lengths(model.codec, max(1.0, stills[0] / CLIP_FPS))
    latent = (size.latent, network.latent_dim)
    return {
        "mean": latent,
        "std": latent,
        "clip_features": (size.clip, network.clip_dim),
        "sync_features": (size.sync, network.sync_dim),
        "text_features": (network.text_tokens, network.text_dim),
    }


def _mapped(path: Path, entry: dict[str, Any]) -> Tensor:
    """A tensor in its file; pages that nobody reads take no memory."""
    dtype = getattr(torch, entry["dtype"].removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DataError(f"{path}: {entry['dtype']}; features are floating-point numbers")
    count = math.prod(entry["shape"])
    size = path.stat().st_size if path.is_file() else -1
    if size != count * dtype.itemsize:
        state = "not there" if size < 0 else f"{size} bytes"
        raise DataError(f"{path}: {state}; {count * dtype.itemsize} bytes are expected. Copy it again")
    return torch.from_file(str(path), shared=False, size=count, dtype=dtype).reshape(entry["shape"])


def _check_finite(stored: StoredSet, folder: Path) -> None:
    for name in TENSORS:
        column = stored.column(name)
        for first in range(0, len(stored), CHECKED_AT_ONCE):
            rows = torch.arange(first, min(first + CHECKED_AT_ONCE, len(stored)))
            if not torch.isfinite(column[rows]).all():
                raise DataError(f"{folder}: {name} holds values that are not finite, from clip {first} on")
