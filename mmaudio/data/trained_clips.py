"""Clips that must not be held out, as an adapter was trained on their source videos."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mmaudio.data.clips import Clip
from mmaudio.lora.clip_names import is_listed


def find_trained_clips(
    held_out: Iterable[Clip], training: Sequence[Mapping[str, Any]], divided_videos: Collection[str]
) -> tuple[list[Clip], list[str]]:
    """The held-out clips of videos that were trained on, and the ids of those with which nothing can be compared.

    `training` has ids and videos of the clips of each training, or their hashes. With one or two videos the table
    divides a video by time (`divided_videos`): its clips are not refused unless they were trained on themselves.
    """
    ids = {clip_id for data in training for clip_id in data.get("ids", [])}
    videos = {video for data in training for video in data.get("videos", [])}
    trained = [clip for clip in held_out if is_listed(clip.id, ids) or is_listed(clip.video, videos)]
    refused = [clip.id for clip in trained if is_listed(clip.id, ids) or clip.video not in divided_videos]
    return trained, refused
