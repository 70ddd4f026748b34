"""Plan of an extraction: which shards are valid, which are missing, stale or damaged, and why.

A shard is identified by the hash of its inputs: the source file's fingerprint, the clips' windows, the encoders'
weights and the code's feature version. A video that was renamed or copied reuses the existing features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmaudio.data.clips import Clip
from mmaudio.data.feature_store import VERSION, Header, clip_window, find_damage, read_header, shard_path
from mmaudio.data.fingerprint import fingerprint
from mmaudio.errors import DataError
from mmaudio.features.encoders import encoder_identities
from mmaudio.media.video import timing_key

NOTHING, TEXTS, EVERYTHING = "nothing", "texts", "everything"


@dataclass(frozen=True)
class ShardPlan:
    """The shard of one video of the table, and what has to be computed for it."""

    path: Path
    """The video."""
    clips: list[Clip]
    shard: Path
    header: Header
    """The header of a valid shard."""
    todo: str
    """NOTHING, TEXTS (video and audio features are valid) or EVERYTHING."""
    reason: str = ""
    """Why the shard is not valid; empty for NOTHING."""
    reused_shard: Path | None = None
    """The shard with the valid video and audio features: this one, or that of a copy of the video."""
    mtime_ns: int = 0
    """Modification time of the shard in nanoseconds; 0 if it does not exist."""

    def is_written_since(self) -> bool:
        """Whether another process has written a valid shard since the plan was made."""
        header = read_header(self.shard)
        is_valid = header is not None and (header.picture_key, header.text_key, header.clip_ids) == (
            self.header.picture_key,
            self.header.text_key,
            self.header.clip_ids,
        )
        return is_valid and _mtime_ns(self.shard) != self.mtime_ns


@dataclass(frozen=True)
class Planner:
    """The inputs that all shards of an extraction share."""

    video_root: Path
    out_dir: Path
    model: str
    identities: dict[str, str]
    """Of `encoder_identities`."""
    precision: str = ""
    """The dtype that a valid shard's encoders computed in; empty: any."""
    check_values: bool = False
    """Read all values of valid shards, too."""

    def plan_shard(self, video: str, clips: list[Clip]) -> ShardPlan:
        """Plan the shard of one video."""
        path, shard = self.video_root / video, shard_path(self.out_dir, video)
        current, source = read_header(shard), fingerprint(path)
        video_exists = bool(source)
        if not video_exists and current is not None:  # features stay valid without their video
            source = current.source
        captions = [clip.caption for clip in clips]
        header = Header(
            video=video,
            clip_ids=[clip.id for clip in clips],
            captions=captions,
            model=self.model,
            seconds=clips[0].seconds,
            encoders=self.identities,
            source=source,
            picture_key=_hash_json(
                [VERSION, source, list(map(_window_key, clips)), self.identities, *timing_key(path, clips[0].streams)]
            ),
            text_key=_hash_json([VERSION, captions, self.identities["clip"]]),
            precision=self.precision,
            windows=[clip_window(clip) for clip in clips],
        )
        plan = ShardPlan(path, clips, shard, header, NOTHING, mtime_ns=_mtime_ns(shard))
        reason = self._invalid_reason(shard, current, header)
        if current is not None and not reason and current.left_out and not video_exists:
            reason = "the video is not there"
        if reason:
            return replace(plan, todo=EVERYTHING, reason=reason)
        assert current is not None
        if (current.text_key, current.clip_ids) == (header.text_key, header.clip_ids):
            return plan
        if not current.left_out and (damage := find_damage(shard, current)):  # is not copied
            return replace(plan, todo=EVERYTHING, reason=damage)
        return replace(plan, todo=TEXTS, reason="other captions", reused_shard=None if current.left_out else shard)

    def _invalid_reason(self, shard: Path, current: Header | None, header: Header) -> str:
        """Why the shard's video and audio features have to be computed again; empty for valid ones."""
        if current is None:
            return "missing" if not shard.exists() else "unreadable, or of another version"
        if current.picture_key != header.picture_key:
            if current.source != header.source:
                return "stale: the video changed"
            return "stale: other encoders" if current.encoders != header.encoders else "stale: other clips"
        if self.precision and current.precision != self.precision and not current.left_out:
            return f"stale: computed in {current.precision}"
        return find_damage(shard, current) if self.check_values and not current.left_out else ""

    def find_reusable_shards(self, overwritten: Collection[Path]) -> dict[str, Path]:
        """Find the shards with features, except those that will be overwritten, by their `picture_key`.

        Shards of another precision than `precision` are left out.
        """
        reusable = {}
        for path in sorted(set(self.out_dir.glob("*.safetensors")).difference(overwritten)):
            header = read_header(path)
            if header is not None and not header.left_out and self.precision in ("", header.precision):
                reusable[header.picture_key] = path
        return reusable


def without_source(header: Header) -> Header:
    """The header of a shard that becomes stale when its video exists again."""
    return replace(header, source="", picture_key="")


def plan_extraction(
    clips: Sequence[Clip],
    video_root: Path,
    out_dir: Path,
    model: str,
    weights: Path | None = None,
    precision: str = "",
    check_values: bool = False,
) -> list[ShardPlan]:
    """Plan one shard per video, the longest videos first; nothing is computed.

    `precision` and `check_values` are those of `Planner`. Raises DataError for a table without clips, with clips of
    several durations or with several tracks of a video, and for a wrong `video_root`.
    """
    by_video = _group_by_video(clips)
    if not any((video_root / video).is_file() for video in by_video):
        raise DataError(f"{video_root}: none of the table's {len(by_video)} videos is there; is it the right folder?")
    planner = Planner(video_root, out_dir, model, encoder_identities(model, weights), precision, check_values)
    plans = [
        planner.plan_shard(video, sorted(video_clips, key=lambda clip: clip.start))
        for video, video_clips in by_video.items()
    ]
    overwritten = [plan.shard for plan in plans if plan.todo == EVERYTHING]
    reusable = planner.find_reusable_shards(overwritten) if overwritten else {}
    plans = [_reuse_shard(plan, reusable) if plan.todo == EVERYTHING else plan for plan in plans]
    return sorted(plans, key=lambda plan: (-len(plan.clips), plan.header.video))


def _group_by_video(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    by_video: dict[str, list[Clip]] = {}
    for clip in clips:
        by_video.setdefault(clip.video, []).append(clip)
    durations = {clip.seconds for clip in clips}
    if not durations:
        raise DataError("the table of clips has no row; split the videos first")
    if len(durations) != 1:
        raise DataError(f"the table of clips has durations {sorted(durations)}; all clips of a table have one duration")
    for video, video_clips in by_video.items():
        if len({clip.streams for clip in video_clips}) > 1:
            raise DataError(f"{video}: the table names several tracks or channels of it; all its clips have the same")
    return by_video


def _reuse_shard(plan: ShardPlan, reusable: Mapping[str, Path]) -> ShardPlan:
    """Reduce the plan to TEXTS if another shard has the same video and audio features."""
    reused_shard = reusable.get(plan.header.picture_key)
    reused_header = None if reused_shard is None else read_header(reused_shard)
    if reused_shard is not None and reused_header is not None and not find_damage(reused_shard, reused_header):
        reason = f"{plan.reason}, but the same video is there already"
        return replace(plan, todo=TEXTS, reason=reason, reused_shard=reused_shard)
    return plan if fingerprint(plan.path) else replace(plan, header=without_source(plan.header))


def _mtime_ns(shard: Path) -> int:
    return shard.stat().st_mtime_ns if shard.is_file() else 0


def _window_key(clip: Clip) -> list[float | None]:
    """The clip's `clip_window`, without track 0 where nothing follows: what shards without it were hashed from."""
    entry = clip_window(clip)
    return entry if clip.track or len(entry) > 3 else [clip.start, clip.end]


def _hash_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
