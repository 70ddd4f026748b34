"""The feature store: one safetensors shard per source video, and the clips of a split, in memory or left in the shards.

A shard is written to a temporary name and renamed: one that exists is whole. Its header says what it was made from. A
video that extraction had to leave out has a shard without tensors, whose header gives the reason.

Legend: K clips, N latent tokens, C latent channels, V CLIP frames, S sync tokens, L text tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmaudio.data.clips import Clip, LeftOut, read_clips
from mmaudio.data.lazy_tensor import Column
from mmaudio.data.shard_writer import ShardWriter
from mmaudio.errors import DataError
from mmaudio.model.spec import ModelSpec, model_spec

VERSION = 3
"""Raised whenever the code computes other features from the same input, other by more than two processors' rounding."""
_HEADER = "mmaudio"
"""The one entry of a shard's metadata, JSON: safetensors writes several entries in random order."""


class NoClips(DataError):
    """A split that no clip is in."""


@dataclass(frozen=True)
class Header:
    """What a shard was made from."""

    video: str
    """Relative to the folder of videos."""
    clip_ids: list[str]
    captions: list[str]
    model: str
    seconds: float
    encoders: dict[str, str]
    """`name:SHA-256 of its weights` of `codec`, `clip` and `sync`: models that share them share features."""
    source: str
    """Fingerprint of the source file."""
    picture_key: str
    """Hash of everything that the features of picture and sound depend on."""
    text_key: str
    """The same for the text features."""
    left_out: str = ""
    """Why there are no features, empty where there are."""
    version: int = VERSION
    precision: str = ""
    """What CLIP and Synchformer computed in: float32 or bfloat16."""
    windows: list[list[float]] = field(default_factory=list)
    """Start, end and number of the sound track of every clip, as `window_of` gives them; empty where nobody knows."""

    @property
    def encoder_names(self) -> dict[str, str]:
        """The encoders without their weights' hashes, as `encoder_names` gives them for a model."""
        return {part: identity.split(":")[0] for part, identity in self.encoders.items()}


@dataclass(frozen=True)
class Features:
    """Features of some clips, float32."""

    mean: Tensor
    """Posterior mean of the latents (K, N, C), not normalised."""
    std: Tensor
    """Posterior standard deviation (K, N, C)."""
    clip_features: Tensor
    """(K, V, image width)."""
    sync_features: Tensor
    """(K, S, sync width)."""
    text_features: Tensor
    """(K, L, text width)."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Features:
        """The same with `change` applied to every tensor."""
        return Features(
            change(self.mean),
            change(self.std),
            change(self.clip_features),
            change(self.sync_features),
            change(self.text_features),
        )

    def rows(self, index: Tensor) -> Features:
        """The features of the clips number `index`, int64."""
        return self.map(lambda tensor: tensor[index])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(Features)}


class ClipTable:
    """What the clips of a split say of themselves, wherever their features are."""

    clips: list[Clip]
    model: str

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def ids(self) -> list[str]:
        """The clips' ids."""
        return [clip.id for clip in self.clips]

    @property
    def videos(self) -> list[str]:
        """The clips' source videos."""
        return [clip.video for clip in self.clips]

    @property
    def captions(self) -> list[str]:
        """The clips' captions."""
        return [clip.caption for clip in self.clips]

    @property
    def seconds(self) -> float:
        """Duration of each clip."""
        return self.clips[0].seconds


@dataclass(frozen=True)
class FeatureSet(ClipTable, Features):
    """The clips of one split in memory, in the table's order."""

    clips: list[Clip]
    model: str
    """The model that extraction was run for; others with the same codec and encoders take these features too."""

    def to(self, device: torch.device | str) -> FeatureSet:
        """The same clips with their tensors on `device`."""
        return feature_set(self.map(lambda tensor: tensor.to(device)), self.clips, self.model)

    def __getitem__(self, index: Tensor) -> Features:
        """The features of the clips number `index` (B,), int64, on the set's device."""
        return self.rows(index)

    def subset(self, index: Sequence[int]) -> FeatureSet:
        """A set of the clips number `index`, in that order."""
        rows = torch.as_tensor(list(index), device=self.mean.device)
        return feature_set(self.rows(rows), [self.clips[i] for i in index], self.model)

    def load(self) -> FeatureSet:
        """The set itself."""
        return self

    def stored(self) -> StoredSet:
        """The same as a set whose only part is this one."""
        return stored_set([self], [range(len(self))], self.clips, self.model)


def feature_set(rows: Features, clips: list[Clip], model: str) -> FeatureSet:
    """The set of `clips` with their features `rows`."""
    return FeatureSet(rows.mean, rows.std, rows.clip_features, rows.sync_features, rows.text_features, clips, model)


TENSORS = tuple(field.name for field in fields(Features))
"""Names of a shard's tensors."""


@dataclass(frozen=True)
class StoredSet(ClipTable):
    """The clips of one split, in the table's order, their features where they are stored: read when asked for."""

    parts: list[Features]
    """Of every file, memory-mapped."""
    places: Tensor
    """(K, 2), int64: the part of every clip, and its row there."""
    clips: list[Clip]
    model: str
    """As FeatureSet's."""

    def column(self, name: str) -> Column:
        """The tensor `name` of TENSORS of all clips."""
        return Column([getattr(part, name) for part in self.parts], self.places)

    def rows(self, index: Tensor) -> Features:
        """The features of the clips number `index` (B,), int64, read into memory."""
        return Features(*(self.column(name)[index] for name in TENSORS))

    def subset(self, index: Sequence[int]) -> StoredSet:
        """A set of the clips number `index`, in that order."""
        return replace(self, places=self.places[list(index)], clips=[self.clips[i] for i in index])

    def joined(self, other: StoredSet) -> StoredSet:
        """The clips of both, those of `other` last."""
        places = torch.cat([self.places, other.places + torch.tensor([len(self.parts), 0])])
        return StoredSet([*self.parts, *other.parts], places, self.clips + other.clips, self.model)

    def load(self) -> FeatureSet:
        """The same in memory."""
        return feature_set(Features(*(self.column(name).whole() for name in TENSORS)), self.clips, self.model)

    def stored(self) -> StoredSet:
        """The set itself."""
        return self


ClipSet = FeatureSet | StoredSet
"""Clips with their features, in memory or not."""


def stored_set(parts: Sequence[Features], rows: Sequence[Sequence[int]], clips: list[Clip], model: str) -> StoredSet:
    """The set of `clips` that are the `rows` of every part, part by part; DataError where shapes differ."""
    shapes = [[tuple(tensor.shape[1:]) for tensor in part.tensors().values()] for part in parts]
    different = next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None)
    if different is not None:
        last = sum(len(own) for own in rows[:different])
        raise DataError(
            f"{clips[last].video}: features of another size than {clips[0].video}'s; clips of one length train "
            "together. Split and extract again with one duration"
        )
    places = [(number, row) for number, own in enumerate(rows) for row in own]
    return StoredSet(list(parts), torch.tensor(places, dtype=torch.int64), clips, model)


def shard_path(folder: Path, video: str) -> Path:
    """Where the features of `video` (relative to the folder of videos) lie."""
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", video)[:60]
    return folder / f"{readable}-{hashlib.sha256(video.encode()).hexdigest()[:8]}.safetensors"


def shard_writer(path: Path, header: Header, shapes: dict[str, tuple[int, ...]]) -> ShardWriter:
    """What writes a shard row by row, whole or not at all; `shapes` are those of its tensors."""
    return ShardWriter(path, {_HEADER: json.dumps(asdict(header), sort_keys=True)}, shapes)


def write_shard(path: Path, header: Header, features: Features | None) -> None:
    """Write a shard, whole or not at all; `features` is None for a video that is left out."""
    tensors = {} if features is None else features.tensors()
    with shard_writer(path, header, {name: tuple(tensor.shape) for name, tensor in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            for number, row in enumerate(tensor):
                writer.put(name, number, row)


def read_header(path: Path) -> Header | None:
    """What a shard says of itself; None where there is none, or another version's."""
    try:
        with safe_open(path, "pt") as file:
            stated = json.loads((file.metadata() or {})[_HEADER])
            complete = bool(stated["left_out"]) or set(file.keys()) == set(TENSORS)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    if not complete or stated["version"] != VERSION:
        return None
    return Header(**stated)


def read_shard(path: Path) -> tuple[Header, Features | None]:
    """A shard's header and features (None for a video that is left out); DataError where it cannot be read.

    The tensors are the file's pages: those that nobody looks at take no memory.
    """
    header = read_header(path)
    if header is None:
        raise DataError(f"{path}: no feature shard of this version; extract again")
    if header.left_out:
        return header, None
    with safe_open(path, "pt") as file:
        return header, Features(*(file.get_tensor(name) for name in TENSORS))


def load_features(clips_tsv: Path, folder: Path, split: str, model: str | None = None) -> FeatureSet:
    """As `open_features`, in memory."""
    return open_features(clips_tsv, folder, split, model).load()


def open_features(clips_tsv: Path, folder: Path, split: str, model: str | None = None) -> StoredSet:
    """All clips of `split` (train, val or test) of the table, with their features in `folder`, which stay there.

    Where the table has no clips for val, those for test stand in, and the other way round. Clips of videos that
    extraction left out (see `left_out`) are not in it. Raises DataError for shards that are missing, stale, not finite
    or made for another model than `model`, and where no clip is left (NoClips).
    """
    unusable = {row.video for row in left_out(clips_tsv, folder)}
    chosen = held_out_or([clip for clip in read_clips(clips_tsv) if clip.video not in unusable], split)
    if not chosen:
        raise NoClips(f"{clips_tsv}: no {split} clip in it that extraction could use")
    by_video: dict[str, list[Clip]] = {}
    for clip in chosen:
        by_video.setdefault(clip.video, []).append(clip)
    opened = [_open(shard_path(folder, video), clips, model) for video, clips in by_video.items()]
    headers, parts, rows = zip(*opened, strict=True)
    return stored_set(parts, rows, [clip for clips in by_video.values() for clip in clips], headers[0].model)


def held_out_or(clips: list[Clip], split: str) -> list[Clip]:
    """The clips of `split`; with too few videos for both val and test, the one stands in for the other."""
    chosen = [clip for clip in clips if clip.split == split]
    other = {"val": "test", "test": "val"}.get(split)
    return chosen or [clip for clip in clips if clip.split == other]


def left_out(clips_tsv: Path, folder: Path) -> list[LeftOut]:
    """The videos of the table that extraction had to leave out, with the reasons."""
    videos = dict.fromkeys(clip.video for clip in read_clips(clips_tsv))
    headers = (read_header(shard_path(folder, video)) for video in videos)
    return [LeftOut(header.video, header.left_out) for header in headers if header is not None and header.left_out]


def _open(path: Path, clips: list[Clip], model: str | None) -> tuple[Header, Features, list[int]]:
    """The features of one video, memory-mapped, and the rows of `clips` in them, checked."""
    if not path.is_file():
        raise DataError(f"{path}: not there; extract features first (training/extract_features_finetuning.py)")
    header, features = read_shard(path)
    captions = dict(zip(header.clip_ids, header.captions, strict=True))
    windows = dict(zip(header.clip_ids, header.windows, strict=False))
    stale = any(
        captions.get(clip.id) != clip.caption
        or clip.seconds != header.seconds
        or windows.get(clip.id, window_of(clip)) != window_of(clip)
        for clip in clips
    )
    if stale or features is None:
        raise DataError(f"{path}: made from another table of clips; extract again (it redoes only what changed)")
    if model is not None and encoder_names(model_spec(model)) != header.encoder_names:
        raise DataError(f"{path}: features for {header.model}, not for {model}; extract again for it")
    rows = [header.clip_ids.index(clip.id) for clip in clips]
    for name, tensor in features.tensors().items():
        if not all(bool(torch.isfinite(tensor[row]).all()) for row in rows):
            raise DataError(f"{path}: {name} holds values that are not finite; delete it and extract again")
    return header, features, rows


def window_of(clip: Clip) -> list[float]:
    """What a shard's header says of a clip's place: start and end in seconds, number of the sound track."""
    return [clip.start, clip.end, clip.track]


def encoder_names(model: ModelSpec) -> dict[str, str]:
    """What computes a model's features; models where this agrees share features."""
    return {"codec": model.codec.name, "clip": model.clip.name, "sync": model.sync.name}
