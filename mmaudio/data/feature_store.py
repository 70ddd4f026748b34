"""Feature store: one safetensors shard per source video.

A shard is written to a temporary name and renamed, so one that exists is complete. Its header states its inputs. A
video that extraction had to leave out has a shard without tensors, whose header gives the reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mmaudio.data.clip_table import read_clips
from mmaudio.data.clips import Clip, LeftOut, clips_of_split
from mmaudio.data.feature_set import FEATURE_NAMES, Features, FeatureSet, LazyFeatureSet, build_lazy_feature_set
from mmaudio.data.row_checksums import RowChecksums
from mmaudio.data.shard_writer import ShardWriter
from mmaudio.errors import DataError
from mmaudio.model.spec import ModelSpec, model_spec
from mmaudio.utils.checkout import command_words

VERSION = 3
"""Raised whenever the code computes other features from the same input, other by more than two processors' rounding."""
_HEADER = "mmaudio"
"""The one entry of a shard's metadata, JSON: safetensors writes several entries in random order."""


class EmptySplitError(DataError):
    """A split without clips."""


@dataclass(frozen=True)
class Header:
    """The inputs of a shard; the fields are the keys of its JSON."""

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
    """Hash of everything that the video and audio features depend on."""
    text_key: str
    """The same for the text features."""
    left_out: str = ""
    """Why there are no features, empty where there are."""
    version: int = VERSION
    precision: str = ""
    """Precision of CLIP and Synchformer: float32 or bfloat16."""
    windows: list[list[float | None]] = field(default_factory=list)
    """Window, streams and gain of every clip, as `clip_window` gives them; empty where unknown."""

    @property
    def encoder_names(self) -> dict[str, str]:
        """The encoders without their weights' hashes, as `encoder_names` gives them for a model."""
        return {encoder: identity.split(":")[0] for encoder, identity in self.encoders.items()}


def shard_path(folder: Path, video: str) -> Path:
    """Path of the features of `video` (relative to the folder of videos)."""
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", video)[:60]
    return folder / f"{readable}-{hashlib.sha256(video.encode()).hexdigest()[:8]}.safetensors"


def open_shard_writer(path: Path, header: Header, shapes: dict[str, tuple[int, ...]]) -> ShardWriter:
    """A writer of a shard row by row, complete or not at all; `shapes` are those of its tensors."""
    return ShardWriter(path, {_HEADER: json.dumps(asdict(header), sort_keys=True)}, shapes)


def write_shard(path: Path, header: Header, features: Features | None) -> None:
    """Write a shard, complete or not at all; `features` is None for a video that is left out."""
    tensors = {} if features is None else features.tensors()
    with open_shard_writer(path, header, {name: tuple(tensor.shape) for name, tensor in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            for number, row in enumerate(tensor):
                writer.write_row(name, number, row)


def read_header(path: Path) -> Header | None:
    """The header of a shard; None where there is no shard, a damaged header, or another version's."""
    try:
        with safe_open(path, "pt") as file:
            RowChecksums.read(file.metadata() or {})
            content = json.loads((file.metadata() or {})[_HEADER])
            complete = bool(content["left_out"]) or set(file.keys()) == set(FEATURE_NAMES)
            return Header(**content) if complete and content["version"] == VERSION else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def read_shard(path: Path) -> tuple[Header, Features | None]:
    """A shard's header and features (None for a video that is left out); DataError where it cannot be read.

    The tensors are memory-mapped: pages that are not read take no memory. `find_damage` checks their values.
    """
    header = read_header(path)
    if header is None:
        raise DataError(f"{path}: no feature shard of this version, or a damaged one; extract again")
    if header.left_out:
        return header, None
    with safe_open(path, "pt") as file:
        return header, Features(*(file.get_tensor(name) for name in FEATURE_NAMES))


def find_damage(path: Path, header: Header, clip_ids: Collection[str] | None = None) -> str:
    """Describe values of a shard, of these clips or all, that are not finite or not as written; empty for none.

    One row is read at a time.
    """
    with safe_open(path, "pt") as file:
        checksums = RowChecksums.read(file.metadata() or {})
        for name in FEATURE_NAMES:
            rows = file.get_slice(name)
            if rows.get_shape()[0] != len(header.clip_ids):
                return f"damaged: {name} has {rows.get_shape()[0]} rows for {len(header.clip_ids)} clips"
            for index, clip_id in enumerate(header.clip_ids):
                if clip_ids is not None and clip_id not in clip_ids:
                    continue
                values = rows[index]
                if not torch.isfinite(values).all():
                    return f"not finite: {name} of clip {clip_id}"
                if not checksums.is_intact(name, index, values):
                    return f"damaged: the checksum of {name} of clip {clip_id} is wrong"
    return ""


def load_features(clips_tsv: Path, folder: Path, split: str, model: str | None = None) -> FeatureSet:
    """As `open_features`, in memory."""
    return open_features(clips_tsv, folder, split, model).load()


def open_features(clips_tsv: Path, folder: Path, split: str, model: str | None = None) -> LazyFeatureSet:
    """All clips of `split` (train, val or test) of the table, with their features left in the shards of `folder`.

    Where the table has no clips for val, those for test stand in, and the other way round. Clips of videos that
    extraction left out (see `read_left_out_videos`) are not included. Raises DataError for shards that are missing,
    stale, not finite or extracted for another model than `model`, and EmptySplitError where no clip remains.
    """
    unusable = {row.video for row in read_left_out_videos(clips_tsv, folder)}
    selected = clips_of_split([clip for clip in read_clips(clips_tsv) if clip.video not in unusable], split)
    if not selected:
        raise EmptySplitError(f"{clips_tsv}: no {split} clip in it that extraction could use")
    by_video: dict[str, list[Clip]] = {}
    for clip in selected:
        by_video.setdefault(clip.video, []).append(clip)
    opened = [_open_shard(shard_path(folder, video), clips, model) for video, clips in by_video.items()]
    headers, shards, rows = zip(*opened, strict=True)
    clips = [clip for video_clips in by_video.values() for clip in video_clips]
    return build_lazy_feature_set(shards, rows, clips, headers[0].model)


def read_left_out_videos(clips_tsv: Path, folder: Path) -> list[LeftOut]:
    """The videos of the table that extraction had to leave out, with the reasons."""
    videos = dict.fromkeys(clip.video for clip in read_clips(clips_tsv))
    headers = (read_header(shard_path(folder, video)) for video in videos)
    return [LeftOut(header.video, header.left_out) for header in headers if header is not None and header.left_out]


def _open_shard(path: Path, clips: list[Clip], model: str | None) -> tuple[Header, Features, list[int]]:
    """The features of one video, memory-mapped, and the rows of `clips` in them, checked."""
    if not path.is_file():
        raise DataError(f"{path}: not there; extract features first ({' '.join(command_words('extract'))})")
    header, features = read_shard(path)
    if features is None or _is_stale(header, clips):
        raise DataError(f"{path}: made from another table of clips; extract again (it redoes only what changed)")
    if model is not None and encoder_names(model_spec(model)) != header.encoder_names:
        raise DataError(f"{path}: features for {header.model}, not for {model}; extract again for it")
    if damage := find_damage(path, header, {clip.id for clip in clips}):
        raise DataError(f"{path}: {damage}; delete it and extract again")
    return header, features, [header.clip_ids.index(clip.id) for clip in clips]


def _is_stale(header: Header, clips: list[Clip]) -> bool:
    """Whether a caption, the duration or the window of one of `clips` changed since extraction."""
    captions = dict(zip(header.clip_ids, header.captions, strict=True))
    windows = dict(zip(header.clip_ids, header.windows, strict=False))
    return any(
        captions.get(clip.id) != clip.caption
        or clip.seconds != header.seconds
        or windows.get(clip.id, clip_window(clip)) != clip_window(clip)
        for clip in clips
    )


def clip_window(clip: Clip) -> list[float | None]:
    """A clip's entry in a shard's header: start and end in seconds, number of the audio track.

    Gain, picture and channel follow where they are not None, or one after them is not.
    """
    entry = [clip.start, clip.end, clip.track, clip.gain_db, clip.video_track, clip.channel]
    while entry[-1] is None:
        entry.pop()
    return entry


def encoder_names(model: ModelSpec) -> dict[str, str]:
    """The encoders of a model's features; models where they agree share features."""
    return {"codec": model.codec.name, "clip": model.clip.name, "sync": model.sync.name}
