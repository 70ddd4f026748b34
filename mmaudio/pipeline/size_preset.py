"""Preset of the training by the number of videos, on a GPU; without one the pipeline takes `quick`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from mmaudio.config import TrainConfig, compose
from mmaudio.data.folds import fold_folder
from mmaudio.errors import ConfigError
from mmaudio.lora.targets import select_targets
from mmaudio.model.networks import build_network
from mmaudio.pipeline.data_changes import starts_anew
from mmaudio.pipeline.job import Job, override_keys, training_overrides
from mmaudio.utils.nested_names import flatten
from mmaudio.utils.trackers import check_trackers

SIZES = ("very_small", "small", "medium")
"""Presets in the order of the number of videos that they are for."""
MAX_VIDEOS = (10, 50)
"""The most videos of each of SIZES but the last."""
SIZE_KEYS = ("lora.rank", "lora.alpha", "learning_rate", "max_steps")
"""The settings in which SIZES differ."""


def preset_by_size(count: int, on_gpu: bool) -> str | None:
    """The preset for `count` videos; None without a GPU or videos, where the pipeline goes by other things."""
    if not on_gpu or count < 1:
        return None
    return SIZES[sum(count > limit for limit in MAX_VIDEOS)]


def choose_preset(job: Job, count: int, on_gpu: bool) -> tuple[Job, str]:
    """The job with the preset for `count` videos, and a line that says why; unchanged where the user names one.

    A training that has begun keeps its preset, and a model too narrow for a preset's rank gets the next smaller one.
    """
    preset = preset_by_size(count, on_gpu)
    if preset is None or "preset" in override_keys(job):
        return job, ""
    candidates = [replace(job, preset=name) for name in (preset, *SIZES)]
    for candidate in candidates if is_training_begun(job) else ():
        if has_settings_of_experiment(candidate):
            return candidate, f"preset={candidate.preset}, as this training began"
    for name in SIZES[SIZES.index(preset) :: -1]:
        candidate = replace(job, preset=name)
        if fits_network(candidate):
            return candidate, f"preset={name} for {count} videos; preset=NAME and other keys after -- win over it"
    return job, ""


def is_training_begun(job: Job) -> bool:
    """Whether training would continue from a state."""
    folders = (job.experiment, fold_folder(job.experiment, 1))
    return not starts_anew(job) and any((folder / "lora_checkpoints" / "state.pt").is_file() for folder in folders)


def has_settings_of_experiment(job: Job) -> bool:
    """Whether the job's settings by size are those in the experiment's config.yaml."""
    paths = [folder / "config.yaml" for folder in (fold_folder(job.experiment, 1), job.experiment)]
    path = next((path for path in paths if path.is_file()), None)  # a fold's steps are as set, those of the adapter not
    if path is None:
        return False
    saved = flatten(cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path))))
    current = flatten(compose(training_overrides(job)).to_dict())
    return all(saved.get(key) == current[key] for key in SIZE_KEYS)


def check_training(job: Job) -> None:
    """Raise ConfigError for settings of training that are not valid, or an adapter that does not fit the network.

    WeightsError for an adapter to start from that cannot be read or is of another base.
    """
    config = compose(training_overrides(job))
    check_trackers(config.logging.trackers)
    with torch.device("meta"):
        network = build_network(config.model)
    select_targets(network, config.lora)
    if config.init_from is not None:
        check_initial_adapter(job, config)


def check_initial_adapter(job: Job, config: TrainConfig) -> None:
    """Raise the errors that training would raise for the adapter it starts from, or where it would be renamed."""
    from mmaudio.finetune.initial_adapter import load_initial_adapter  # here, as peft takes seconds to import

    load_initial_adapter(config)
    if starts_anew(job) and Path(config.init_from or "").resolve().is_relative_to(job.experiment.resolve()):
        raise ConfigError(
            f"--from {job.first_stage} renames {job.experiment}, in which {config.init_from} is; leave --from out and "
            "give the new experiment a name: -- exp_id=NAME"
        )


def fits_network(job: Job) -> bool:
    """Whether the job's settings of training suit its model."""
    try:
        check_training(job)
    except ConfigError:
        return False
    return True
