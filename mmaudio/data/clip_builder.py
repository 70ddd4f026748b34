"""The clips of a split: ids, captions and measurements of its windows."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from mmaudio.data.captions import Captions
from mmaudio.data.clip_table import OPTIONAL_NUMBERS
from mmaudio.data.clips import Clip
from mmaudio.data.filters import FilterRules, reason_kind
from mmaudio.data.scan import MeasuredWindow
from mmaudio.data.splits import WindowsBySplit, name_hash

MEASUREMENTS = ("peak_db", "rms_db", "silence", *OPTIONAL_NUMBERS)
"""Fields that a clip takes over from its window."""


def build_clips(
    divided: dict[str, WindowsBySplit],
    captions: Captions,
    rules: FilterRules,
    track: int,
    gains_db: dict[str, float | None],
) -> list[Clip]:
    """The rows of the table of clips, by video and time; `gains_db` has the gain of every video."""
    clips = [
        replace(_build_clip(video, window, split, captions, rules, track), gain_db=gains_db[video])
        for video, by_split in divided.items()
        for split, windows in by_split.items()
        for window in windows
    ]
    return sorted(clips, key=lambda clip: (clip.video, clip.start))


def _build_clip(
    video: str, window: MeasuredWindow, split: str, captions: Captions, rules: FilterRules, track: int
) -> Clip:
    clip_id = f"{video_slug(video)}_{round(window.start * 1000):08d}"
    return Clip(
        clip_id,
        video,
        window.start,
        window.end,
        captions.find(video, clip_id, window.start),
        split,
        **{name: getattr(window, name) for name in MEASUREMENTS},
        track=track,
        breaks="; ".join(map(reason_kind, rules.find_violations(window))),
    )


def video_slug(video: str) -> str:
    """A unique name of a video that is fit for a file name; it does not depend on the other videos."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", Path(video).stem).strip("_")
    return name if video == f"{name}.mp4" else f"{name[:80]}_{name_hash(video)[:6]}".lstrip("_")
