"""Held-out clips of an evaluation, checked: their videos exist, and the adapter was not trained on them."""

from __future__ import annotations

from pathlib import Path

from mmaudio.data import trained_clips
from mmaudio.data.clip_table import check_videos_inside, read_clips
from mmaudio.data.feature_set import FeatureSet
from mmaudio.data.feature_store import load_features
from mmaudio.errors import DataError
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.general_domain import spread_over_videos
from mmaudio.lora.stack import AdapterStack


def load_held_out(config: EvaluationConfig, model: str, stack: AdapterStack) -> tuple[FeatureSet, frozenset[str]]:
    """The held-out clips to compare, and the ids of those whose source videos an adapter was trained on.

    Raises DataError for clips whose videos are missing or outside of the folder, and as `find_trained_clips` does.
    """
    if not config.allow_outside:
        check_videos_inside(config.clips_tsv, read_clips(config.clips_tsv))
    held_out = load_features(config.clips_tsv, config.features_dir, "test", model)
    trained_ids = find_trained_clips(held_out, stack, config)
    check_videos_exist(config.video_root, held_out)
    return held_out.subset(spread_over_videos(held_out.videos, config.max_clips)), trained_ids


def find_trained_clips(features: FeatureSet, stack: AdapterStack, config: EvaluationConfig) -> frozenset[str]:
    """Ids of the clips whose source videos an adapter, or one that it was trained on from, was trained on.

    DataError where there are any and the config does not include them. With one or two videos the table of clips
    itself divides a video by time: such clips are marked, but not refused.
    """
    trainings = [data.get("train", {}) for item in stack.adapters for data in (item.file.data, *item.file.lineage)]
    divided_by_time = {clip.video for clip in read_clips(config.clips_tsv) if clip.split == "train"}
    trained, refused = trained_clips.find_trained_clips(features.clips, trainings, divided_by_time)
    if refused and not config.include_training:
        raise DataError(
            f"{len(refused)} held-out clips are of videos that were trained on ({', '.join(sorted(refused)[:3])} ...): "
            "comparing on them says nothing. Give the table of clips that the adapter was trained with (--clips), or "
            "take them in, marked (--include-training)"
        )
    return frozenset(clip.id for clip in trained)


def check_videos_exist(video_root: Path, features: FeatureSet) -> None:
    """DataError where the folder does not hold the clips' videos."""
    absent = [video for video in dict.fromkeys(features.videos) if not (video_root / video).is_file()]
    if absent:
        raise DataError(
            f"{video_root}: {len(absent)} held-out videos are not there ({', '.join(absent[:3])}); give the folder "
            "that the table of clips was made from (--test_videos)"
        )
