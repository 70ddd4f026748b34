"""The training and validation clips of a configuration, and a split of them by source video."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmaudio.config import TrainConfig
from mmaudio.data.feature_set import AnyFeatureSet, LazyFeatureSet
from mmaudio.data.feature_store import EmptySplitError, open_features
from mmaudio.data.mmaudio_memmap import open_memmap
from mmaudio.errors import DataError


def load_clip_sets(config: TrainConfig) -> tuple[LazyFeatureSet, LazyFeatureSet | None]:
    """Training and validation clips; the latter None where validation is off.

    DataError as `open_features` and, for `custom_finetune=false`, `open_memmap` raise it.
    """
    train = _open_split(config, "train")
    if not config.validation.enabled:
        return train, None
    ratio = config.validation.split_ratio
    try:
        held_out = _open_split(config, "val")
    except EmptySplitError as error:
        if ratio is None:
            raise DataError(
                f"{error}; validation.split_ratio=0.2 holds a fifth of the videos out, validation.enabled=false "
                "trains without"
            ) from error
        return split_by_video(train, None, ratio)
    return (train, held_out) if ratio is None else split_by_video(train, held_out, ratio)


def _open_split(config: TrainConfig, split: str) -> LazyFeatureSet:
    folder = Path(config.features_dir)
    if config.custom_finetune:
        return open_features(Path(config.clips_tsv), folder, split, config.model)
    return open_memmap(folder, split, config.model)


def split_by_video(
    train: AnyFeatureSet, held_out: AnyFeatureSet | None, ratio: float
) -> tuple[LazyFeatureSet, LazyFeatureSet]:
    """Split training and validation clips, if any, by source video: `ratio` of the videos, one at least, is held out.

    Test clips that stand in for validation stay out. Raises DataError where all clips are from one video.
    """
    all_clips = train.to_lazy()
    if held_out is not None and held_out.clips[0].split == "val":
        all_clips = all_clips.concat(held_out.to_lazy())
    videos = [clip.video for clip in all_clips.clips]
    shuffled = sorted(set(videos), key=lambda video: hashlib.sha256(video.encode()).hexdigest())
    if len(shuffled) < 2:
        raise DataError(f"validation.split_ratio={ratio:g}: there is one source video; leave the ratio null")
    validation_videos = set(shuffled[: min(len(shuffled) - 1, max(1, round(ratio * len(shuffled))))])
    is_validation = [video in validation_videos for video in videos]
    train_rows = [row for row, flag in enumerate(is_validation) if not flag]
    validation_rows = [row for row, flag in enumerate(is_validation) if flag]
    return all_clips.subset(train_rows), all_clips.subset(validation_rows)
