"""Settings of the split: `config/split_config.yaml` with overrides of the command line."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmaudio.config import CONFIG_FOLDER, dotted_names
from mmaudio.data.clips import DEFAULT_STRIDE, DEFAULT_TEST_RATIO
from mmaudio.data.filters import FilterRules
from mmaudio.errors import ConfigError
from mmaudio.model.spec import CLIP_SECONDS

SPLIT_CONFIG_FILE = CONFIG_FOLDER / "split_config.yaml"
ALIASES = {"validation.split_ratio": "split.val_ratio"}
"""Keys of the training configuration that mean the same here."""


@dataclass
class SplitConfig:
    """How videos are cut and split; `data.scan.ScanSettings` and `data.splits.SplitRatios` check the values.

    The first line after every field is its comment in config/split_config.yaml; see `training/write_config.py`.
    """

    seconds: float = CLIP_SECONDS
    """duration of a clip: what the models are trained on"""
    stride: float = DEFAULT_STRIDE
    """seconds between the starts of two clips"""
    val_ratio: float = 0.1
    """share of the videos for validation"""
    test_ratio: float = DEFAULT_TEST_RATIO
    """share of the videos for the test; 0.2: at least 3 of 9 videos and more"""
    silence_db: float = -60.0
    """a 50 ms block whose peak is below this counts as silent"""
    max_gap: float = 1.0
    """seconds between two frames from which on pictures are missing; no clip lies across"""
    scene_tolerance: float = 0.25
    """--scenes: seconds of the next shot that a clip may reach into"""
    normalize: str = "video"
    """loudness: one gain per video, every window to its own peak, or as in the file (video, window, none)"""
    rules: FilterRules = field(default_factory=FilterRules)
    """a clip that breaks one is left out, with the reason; null: no such rule"""


@dataclass
class SplitConfigFile:
    """The one key of the file."""

    split: SplitConfig = field(default_factory=SplitConfig)


def compose_split_config(overrides: list[str], path: Path = SPLIT_CONFIG_FILE) -> SplitConfig:
    """The settings in `path` with overrides such as `split.stride=8`.

    Raises ConfigError for an unknown key, with the nearest one, and for a value of the wrong type.
    """
    valid_keys = dotted_names(SplitConfigFile)
    dotlist = []
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        key = ALIASES.get(key, key)
        if not equals or key not in valid_keys:
            nearest = difflib.get_close_matches(key, valid_keys, n=1, cutoff=0.0)
            raise ConfigError(f"{override}: there is no key {key!r}; did you mean {nearest[0]!r}?")
        dotlist.append(f"{key}={value}")
    try:
        schema = OmegaConf.structured(SplitConfigFile)
        merged = OmegaConf.merge(schema, OmegaConf.load(path), OmegaConf.from_dotlist(dotlist))
        return cast(SplitConfigFile, OmegaConf.to_object(merged)).split
    except OmegaConfBaseException as error:
        problem = " ".join(str(error).split("\n    full_key:")[0].split())
        raise ConfigError(f"{getattr(error, 'full_key', None) or path.name}: {problem}") from error
