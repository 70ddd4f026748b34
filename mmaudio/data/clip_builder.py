"""The clips of a split: ids, captions and measurements of its windows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mmaudio.data.captions import Captions
from mmaudio.data.clip_table import OPTIONAL_NUMBERS
from mmaudio.data.clips import Clip
from mmaudio.data.filters import FilterRules, reason_kind
from mmaudio.data.scan import MeasuredWindow, VideoScan
from mmaudio.data.splits import WindowsBySplit, name_hash

MEASUREMENTS = ("peak_db", "rms_db", "silence", *OPTIONAL_NUMBERS)
"""Fields that a clip takes over from its window."""


def build_clips(
    divided: dict[str, WindowsBySplit],
    captions: Captions,
    rules: FilterRules,
    scans: dict[str, VideoScan],
    gain_of: Callable[[VideoScan], float | None],
) -> list[Clip]:
    """The rows of the table of clips, by video and time; `scans` has that of every video, `gain_of` gives its gain."""
    clips = [
        replace(_build_clip(scans[video], window, split, captions, rules), gain_db=gain_of(scans[video]))
        for video, by_split in divided.items()
        for split, windows in by_split.items()
        for window in windows
    ]
    return sorted(clips, key=lambda clip: (clip.video, clip.start))


def _build_clip(scan: VideoScan, window: MeasuredWindow, split: str, captions: Captions, rules: FilterRules) -> Clip:
    video = scan.video
    clip_id = f"{video_slug(video)}_{round(window.start * 1000):08d}"
    return Clip(
        clip_id,
        video,
        window.start,
        window.end,
        captions.find(video, clip_id, window.start),
        split,
        **{name: getattr(window, name) for name in MEASUREMENTS},
        track=scan.track,
        video_track=scan.video_track,
        channel=scan.channel,
        notes=scan.note,
        breaks="; ".join(map(reason_kind, rules.find_violations(window))),
    )


def video_slug(video: str) -> str:
    """A unique name of a video that is fit for a file name; it does not depend on the other videos."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", Path(video).stem).strip("_")
    return name if video == f"{name}.mp4" else f"{name[:80]}_{name_hash(video)[:6]}".lstrip("_")
