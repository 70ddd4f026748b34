"""What extraction has to do: for every video of a table, what of its shard is still valid, and why the rest is not.

A shard is known by the hash of everything that it was made from: the source's fingerprint, the windows, the encoders'
weights and the code's feature version. A video that was renamed or copied takes the features that are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open

from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import TENSORS, VERSION, Header, read_header, shard_path, window_of
from mmaudio.data.scan import fingerprint
from mmaudio.errors import DataError
from mmaudio.features.encoders import encoder_identities

NOTHING, TEXTS, EVERYTHING = "nothing", "texts", "everything"


@dataclass(frozen=True)
class Job:
    """One video of the table."""

    path: Path
    clips: list[Clip]
    shard: Path
    wanted: Header
    """What its shard's header has to say to be valid."""
    todo: str
    """NOTHING, TEXTS (picture and sound are valid) or EVERYTHING."""
    why: str = ""
    """Why there is something to do."""
    donor: Path | None = None
    """The shard that holds the valid features of picture and sound: its own, or that of the same video elsewhere."""
    stamp: int = 0
    """When the shard was written, in nanoseconds; 0 where there is none."""

    def made_meanwhile(self) -> bool:
        """Whether another process has made this shard since it was looked at."""
        header = read_header(self.shard)
        same = header is not None and (header.picture_key, header.text_key, header.clip_ids) == (
            self.wanted.picture_key,
            self.wanted.text_key,
            self.wanted.clip_ids,
        )
        return same and _stamp(self.shard) != self.stamp


@dataclass(frozen=True)
class Planner:
    """What all videos of a run share."""

    root: Path
    out_dir: Path
    model: str
    identities: dict[str, str]
    precision: str = ""
    """What the encoders have to have computed in; empty takes what is there."""
    look_inside: bool = False
    """Read all values of valid shards, too."""

    def job(self, video: str, clips: list[Clip]) -> Job:
        """What has to be done for one video."""
        path, shard = self.root / video, shard_path(self.out_dir, video)
        present, source = read_header(shard), fingerprint(path)
        there = bool(source)
        if not there and present is not None:  # features outlive videos
            source = present.source
        windows = [[clip.start, clip.end, *([clip.track] if clip.track else [])] for clip in clips]
        captions = [clip.caption for clip in clips]
        wanted = Header(
            video=video,
            clip_ids=[clip.id for clip in clips],
            captions=captions,
            model=self.model,
            seconds=clips[0].seconds,
            encoders=self.identities,
            source=source,
            picture_key=_hash([VERSION, source, windows, self.identities]),
            text_key=_hash([VERSION, captions, self.identities["clip"]]),
            precision=self.precision,
            windows=[window_of(clip) for clip in clips],
        )
        job = Job(path, clips, shard, wanted, NOTHING, stamp=_stamp(shard))
        why = self._stale(shard, present, wanted)
        if present is not None and not why and present.left_out and not there:
            why = "the video is not there"
        if why:
            return replace(job, todo=EVERYTHING, why=why)
        assert present is not None
        if (present.text_key, present.clip_ids) != (wanted.text_key, wanted.clip_ids):
            return replace(job, todo=TEXTS, why="other captions", donor=None if present.left_out else shard)
        return job

    def _stale(self, shard: Path, present: Header | None, wanted: Header) -> str:
        """Why the features of picture and sound have to be made anew, empty where they need not."""
        if present is None:
            return "missing" if not shard.exists() else "unreadable, or of another version"
        if present.picture_key != wanted.picture_key:
            if present.source != wanted.source:
                return "stale: the video changed"
            return "stale: other encoders" if present.encoders != wanted.encoders else "stale: other clips"
        if self.precision and present.precision != self.precision and not present.left_out:
            return f"stale: computed in {present.precision}"
        return damage(shard, present) if self.look_inside and not present.left_out else ""

    def donors(self, overwritten: Collection[Path]) -> dict[str, Path]:
        """The shards that stay as they are, with features, by their picture's key; only those computed as wanted."""
        found = {}
        for path in sorted(set(self.out_dir.glob("*.safetensors")).difference(overwritten)):
            header = read_header(path)
            usable = header is not None and not header.left_out and self.precision in ("", header.precision)
            if header is not None and usable and not (self.look_inside and damage(path, header)):
                found[header.picture_key] = path
        return found


def unfounded(header: Header) -> Header:
    """The header of a shard that does not hold any more once its video is there."""
    return replace(header, source="", picture_key="")


def plan(
    clips: Sequence[Clip],
    root: Path,
    out_dir: Path,
    model: str,
    weights: Path | None = None,
    precision: str = "",
    look_inside: bool = False,
) -> list[Job]:
    """One job per video, the longest first; nothing is computed. For `precision` and `look_inside` see `Planner`.

    Raises DataError for a table without clips, with clips of several durations or with several sound tracks of a video,
    and for a wrong `root`.
    """
    by_video: dict[str, list[Clip]] = {}
    for clip in clips:
        by_video.setdefault(clip.video, []).append(clip)
    durations = {clip.seconds for clip in clips}
    if not durations:
        raise DataError("the table of clips has no row; split the videos first")
    if len(durations) != 1:
        raise DataError(f"the table of clips has durations {sorted(durations)}; all of a table have one")
    mixed = next((video for video, own in by_video.items() if len({clip.track for clip in own}) > 1), None)
    if mixed is not None:
        raise DataError(f"{mixed}: the table names several sound tracks of it; all clips of a video have one")
    if not any((root / video).is_file() for video in by_video):
        raise DataError(f"{root}: none of the table's {len(by_video)} videos is there; is it the right folder?")
    planner = Planner(root, out_dir, model, encoder_identities(model, weights), precision, look_inside)
    jobs = [planner.job(video, sorted(chosen, key=lambda clip: clip.start)) for video, chosen in by_video.items()]
    anew = [job.shard for job in jobs if job.todo == EVERYTHING]
    donors = planner.donors(anew) if anew else {}
    jobs = [_eased(job, donors) if job.todo == EVERYTHING else job for job in jobs]
    return sorted(jobs, key=lambda job: (-len(job.clips), job.wanted.video))


def _eased(job: Job, donors: Mapping[str, Path]) -> Job:
    """The job where another shard may have its features of picture and sound."""
    donor = donors.get(job.wanted.picture_key)
    if donor is not None:
        return replace(job, todo=TEXTS, why=f"{job.why}, but the same video is there already", donor=donor)
    return job if fingerprint(job.path) else replace(job, wanted=unfounded(job.wanted))


def damage(shard: Path, header: Header) -> str:
    """What is wrong with the values of a shard, empty where nothing is; one row is read at a time."""
    with safe_open(shard, "pt") as file:
        for name in TENSORS:
            rows = file.get_slice(name)
            if rows.get_shape()[0] != len(header.clip_ids):
                return f"damaged: {name} has {rows.get_shape()[0]} rows for {len(header.clip_ids)} clips"
            for number, clip in enumerate(header.clip_ids):
                if not torch.isfinite(rows[number]).all():
                    return f"not finite: {name} of clip {clip}"
    return ""


def _stamp(shard: Path) -> int:
    return shard.stat().st_mtime_ns if shard.is_file() else 0


def _hash(stated: object) -> str:
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
