"""Folds of a cross-validation by source video: which videos each one holds out, and its table of clips.

EXPERIMENT/folds/folds.json      the plan: the videos of each fold, and the table that they are from
EXPERIMENT/folds/K/clips.tsv     fold K, from 1 on: its own videos are the test, some of the others the validation
EXPERIMENT/folds/all.tsv         every clip for training: of the adapter that the user gets
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmaudio.config import TrainConfig
from mmaudio.data.clip_table import read_clips, write_clips
from mmaudio.data.clips import MIN_VERDICT_VIDEOS, Clip
from mmaudio.data.feature_store import read_left_out_videos
from mmaudio.data.splits import MAX_VIDEOS_DIVIDED_IN_TIME, divide_in_time, name_hash
from mmaudio.errors import ConfigError, DataError
from mmaudio.utils.files import atomic_write
from mmaudio.utils.setting_checks import AUTO, OFF, ON, parse_folds

AUTO_FOLDS = 5
"""At most so many folds, unless the user gives a number."""
AUTO_MAX_VIDEOS = 12
"""With more videos AUTO takes no folds: one split holds out enough of them for a verdict."""
VAL_RATIO = 0.1
"""Share of a fold's clips for validation, where two videos or fewer are left and each is divided in time."""


def count_folds(name: str, text: str, num_videos: int, on_gpu: bool, experiment: Path | None = None) -> int:
    """The number of folds for so many videos, 0 for none; ConfigError where more are asked for than can be had.

    AUTO keeps what an experiment that has begun has.
    """
    text = parse_folds(name, text)
    if text == AUTO and experiment is not None and (plan := read_fold_plan(experiment)) is not None:
        return len(plan)
    if text == AUTO and experiment is not None and (experiment / "lora_checkpoints").is_dir():
        return 0
    if text == OFF or (text == AUTO and not (on_gpu and MIN_VERDICT_VIDEOS <= num_videos <= AUTO_MAX_VIDEOS)):
        return 0
    if num_videos < MIN_VERDICT_VIDEOS:
        raise ConfigError(
            f"{name}{text}: folds take {MIN_VERDICT_VIDEOS} videos that can be used or more, there are fewer "
            f"({num_videos}); {name}{OFF} divides each in time"
        )
    if text in (AUTO, ON):
        return min(num_videos, AUTO_FOLDS)
    if int(text) > num_videos:
        raise ConfigError(
            f"{name}{text}: there are {num_videos} videos that can be used, and every fold holds out at least one; "
            f"{num_videos} folds are the most, {min(num_videos, AUTO_FOLDS)} are usual"
        )
    return int(text)


def can_have_folds(name: str, text: str, config: TrainConfig) -> bool:
    """Whether the settings of training go together with folds; ConfigError where they do not and folds are asked for.

    With OFF False; with AUTO too where they do not, or training starts from an adapter, which may know the videos.
    """
    if text == OFF or (text == AUTO and config.init_from is not None):
        return False
    obstacles = {
        "custom_finetune=false": not config.custom_finetune,
        "validation.enabled=false": not config.validation.enabled,
        "lora.enabled=false": not config.lora.enabled,
        "lora.phases": bool(config.lora.phases),
    }
    obstacle = next((setting for setting, is_set in obstacles.items() if is_set), "")
    if obstacle and text != AUTO:
        raise ConfigError(
            f"{name}{text} with {obstacle}: folds take a table of clips, an adapter of one rank, and the validation "
            "that chooses the steps"
        )
    return not obstacle


@dataclass(frozen=True)
class FoldPlan:
    """The folds of one experiment."""

    clips_tsv: str
    """The table that the folds' tables are made from."""
    videos: list[list[str]]
    """The videos that each fold holds out."""

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def numbers(self) -> range:
        """The folds' numbers."""
        return range(1, len(self) + 1)


def folds_folder(experiment: Path) -> Path:
    """The folder of all folds."""
    return experiment / "folds"


def fold_folder(experiment: Path, number: int) -> Path:
    """The experiment of one fold."""
    return folds_folder(experiment) / str(number)


def fold_table(experiment: Path, number: int) -> Path:
    """The table of clips of one fold."""
    return fold_folder(experiment, number) / "clips.tsv"


def all_clips_table(experiment: Path) -> Path:
    """The table in which every clip is for training."""
    return folds_folder(experiment) / "all.tsv"


def plan_path(experiment: Path) -> Path:
    """The file of the plan."""
    return folds_folder(experiment) / "folds.json"


def read_fold_plan(experiment: Path) -> FoldPlan | None:
    """The plan of an experiment; None where it has no folds. DataError where the file cannot be read."""
    path = plan_path(experiment)
    if not path.is_file():
        return None
    try:
        return FoldPlan(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); delete it, and the same training writes it again"
        ) from error


def usable_clips(clips_tsv: Path, features_dir: Path) -> list[Clip]:
    """The clips of a table but for those of videos that extraction had to leave out."""
    unusable = {row.video for row in read_left_out_videos(clips_tsv, features_dir)}
    return [clip for clip in read_clips(clips_tsv) if clip.video not in unusable]


def divide_videos(videos: Sequence[str], num_folds: int) -> list[list[str]]:
    """The videos that each fold holds out: sizes differ by one at most, names decide by their hash."""
    ordered = sorted(set(videos), key=name_hash)
    return [ordered[number::num_folds] for number in range(num_folds)]


def write_fold_tables(experiment: Path, clips_tsv: Path, features_dir: Path, num_folds: int) -> FoldPlan:
    """Write the plan and every table, where they are not there yet; the plan.

    DataError where the experiment has folds of other videos, or a fold leaves too little to train on.
    """
    clips = usable_clips(clips_tsv, features_dir)
    plan = FoldPlan(str(clips_tsv), divide_videos([clip.video for clip in clips], num_folds))
    earlier = read_fold_plan(experiment)
    if earlier is not None and earlier.videos != plan.videos:
        raise DataError(
            f"{experiment} has {len(earlier)} folds of {sum(map(len, earlier.videos))} videos, now there are "
            f"{len(plan)} of {sum(map(len, plan.videos))}, or other videos: put them back, take another exp_id, or "
            "start over in a new folder with resume=false (of the pipeline: --from train)"
        )
    tables = {fold_table(experiment, number): fold_clips(clips, plan, number) for number in plan.numbers}
    tables[all_clips_table(experiment)] = [replace(clip, split="train") for clip in clips]
    for path, rows in tables.items():
        write_clips(path, rows)
    if earlier != plan:
        with atomic_write(plan_path(experiment)) as temporary:
            temporary.write_text(json.dumps(asdict(plan), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return plan


def fold_clips(clips: Sequence[Clip], plan: FoldPlan, number: int) -> list[Clip]:
    """The clips of one fold with its splits; those between a video's training and its validation are left out.

    As large a share of the videos is for validation as in the table, at least one: in each fold the ones that come
    after its own, so that every video is in turn. DataError where a fold leaves too little to train on.
    """
    tested = plan.videos[number - 1]
    ordered = sorted({clip.video for clip in clips}, key=name_hash)
    remaining = [video for video in [*ordered[number:], *ordered[:number]] if video not in tested]
    if len(remaining) <= MAX_VIDEOS_DIVIDED_IN_TIME:
        return _divide_each(clips, tested, remaining, number)
    share = len({clip.video for clip in clips if clip.split == "val"}) / len(ordered)
    validation = remaining[: min(len(remaining) - 1, max(1, round(share * len(remaining))))]
    splits = {**dict.fromkeys(remaining, "train"), **dict.fromkeys(validation, "val"), **dict.fromkeys(tested, "test")}
    return [replace(clip, split=splits[clip.video]) for clip in clips]


def _divide_each(clips: Sequence[Clip], tested: Sequence[str], remaining: Sequence[str], number: int) -> list[Clip]:
    """The clips of a fold that leaves one or two videos: each is divided in time, or one of two is for validation."""
    by_video = [[clip for clip in clips if clip.video == video] for video in remaining]
    gap = clips[0].seconds
    divided = [divide_in_time(rows, [("val", VAL_RATIO)], gap) or {"train": rows} for rows in by_video]
    if not any("val" in by_split for by_split in divided):
        if len(remaining) < 2:
            raise DataError(
                f"fold {number} would train on {remaining[0]} alone, which is too short to validate on another part of "
                "it; more folds, or more videos, leave more to train on"
            )
        divided[0] = {"val": by_video[0]}
    divided.append({"test": [clip for clip in clips if clip.video in tested]})
    splits = {clip.id: split for by_split in divided for split, rows in by_split.items() for clip in rows}
    return [replace(clip, split=splits[clip.id]) for clip in clips if clip.id in splits]
