"""General-domain clips: videos of the base model's own domain, on which forgetting is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mmaudio.data.clip_table import write_clips
from mmaudio.data.feature_set import FeatureSet
from mmaudio.data.feature_store import load_features
from mmaudio.data.folder_split import SplitSettings, split_folder
from mmaudio.data.scan import ScanSettings
from mmaudio.data.scan_store import ScanStore
from mmaudio.errors import DataError
from mmaudio.features.extraction import ExtractionConfig, extract
from mmaudio.model.spec import CLIP_SECONDS, ModelSpec
from mmaudio.weights import store as weights

MAX_CLIPS = 16
"""General-domain clips that are compared, evenly over their videos."""


@dataclass(frozen=True)
class GeneralDomain:
    """Videos of the base model's own domain with their features."""

    video_root: Path
    features_dir: Path
    features: FeatureSet
    description: str
    """For the report."""


def load_general_domain(
    spec: ModelSpec, videos: Path | None, features_dir: Path, weights_folder: Path | None, device: torch.device
) -> tuple[GeneralDomain | None, str]:
    """Extract features of the clips of `videos` (None: those that ship with the model); else None and the reason.

    Raises DataError where `videos` is given and holds nothing that can be used.
    """
    shipped = weights.ASSETS / spec.name / weights.GENERAL_VIDEOS_FOLDER
    video_root = shipped if videos is None else videos
    if videos is None and not shipped.is_dir():
        return None, "no videos of the base's own domain are at hand (--general_videos names a folder of them)"
    settings = SplitSettings(ScanSettings(stride=CLIP_SECONDS), val_ratio=0, test_ratio=0, isolated=videos is not None)
    split = split_folder(video_root, settings, ScanStore(features_dir / "scan.jsonl"))
    clips = [split.clips[row] for row in spread_over_videos([clip.video for clip in split.clips], MAX_CLIPS)]
    if not clips:
        reasons = "; ".join(f"{item.video}: {item.reason}" for item in split.left_out[:3])
        raise DataError(f"{video_root}: no clip that can stand for the base's domain ({reasons})")
    clips_tsv = features_dir / "clips.tsv"
    write_clips(clips_tsv, [replace(clip, split="test") for clip in clips])
    extract(clips_tsv, video_root, features_dir, ExtractionConfig(spec.name, weights_folder, device))
    features = load_features(clips_tsv, features_dir, "test", spec.name)
    description = "those that ship with the model" if videos is None else str(videos)
    return GeneralDomain(video_root, features_dir, features, description), ""


def spread_over_videos(videos: Sequence[str], limit: int | None) -> list[int]:
    """At most `limit` indices, taken from each video in turn so that no video is missing before another has two."""
    counts: dict[str, int] = {}
    ranked = []
    for index, video in enumerate(videos):
        counts[video] = counts.get(video, -1) + 1
        ranked.append((counts[video], index))
    return sorted(index for _, index in sorted(ranked)[:limit])
