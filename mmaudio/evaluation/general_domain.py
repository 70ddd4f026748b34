"""Clips of the base model's own domain, on which an adapter should change nothing: what was forgotten shows there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mmaudio.data.clips import write_clips
from mmaudio.data.feature_store import FeatureSet, load_features
from mmaudio.data.folder_split import SplitSettings, split_folder
from mmaudio.data.scan import ScanSettings, ScanStore
from mmaudio.errors import DataError
from mmaudio.features.extraction import Extraction, extract
from mmaudio.model.spec import SECONDS, ModelSpec
from mmaudio.weights import store as weights

SHIPPED = "general"
"""The folder of such videos beside an embedded model's weights: .mp4 files, captions in .txt files of the same name."""

MOST_CLIPS = 16
"""Clips of that domain that are compared, evenly over its videos."""


@dataclass(frozen=True)
class General:
    """The videos of the base's domain with their features."""

    root: Path
    folder: Path
    """Where the features lie."""
    features: FeatureSet
    what: str
    """In words, for the report."""


def general_set(
    spec: ModelSpec, videos: Path | None, folder: Path, weights_folder: Path | None, device: torch.device
) -> tuple[General | None, str]:
    """The clips of `videos` (None: those that ship with the model), features in `folder`; else None and why.

    Raises DataError where `videos` is given and holds nothing that can be used.
    """
    shipped = weights.ASSETS / spec.name / SHIPPED
    root = shipped if videos is None else videos
    if videos is None and not shipped.is_dir():
        return None, "no videos of the base's own domain are at hand (--general_videos names a folder of them)"
    settings = SplitSettings(ScanSettings(stride=SECONDS), val_ratio=0, test_ratio=0)
    found = split_folder(root, settings, ScanStore(folder / "scan.jsonl"))
    clips = [found.clips[row] for row in spread([clip.video for clip in found.clips], MOST_CLIPS)]
    if not clips:
        reasons = "; ".join(f"{item.video}: {item.reason}" for item in found.left_out[:3])
        raise DataError(f"{root}: no clip that can stand for the base's domain ({reasons})")
    table = folder / "clips.tsv"
    write_clips(table, [replace(clip, split="test") for clip in clips])
    extract(table, root, folder, Extraction(spec.name, weights_folder, device))
    what = "those that ship with the model" if videos is None else str(videos)
    return General(root, folder, load_features(table, folder, "test", spec.name), what), ""


def spread(videos: Sequence[str], limit: int | None) -> list[int]:
    """At most `limit` indices, taken from each video in turn so that no video is missing before another has two."""
    turns: dict[str, int] = {}
    ranked = []
    for index, video in enumerate(videos):
        turns[video] = turns.get(video, -1) + 1
        ranked.append((turns[video], index))
    chosen = sorted(ranked)[:limit]
    return sorted(index for _, index in chosen)
