"""The settings of splitting: `config/split_config.yaml`, then what the command line says."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmaudio.config import FOLDER, keys
from mmaudio.data.clips import STRIDE
from mmaudio.data.filters import Rules
from mmaudio.errors import ConfigError
from mmaudio.model.spec import SECONDS

FILE = FOLDER / "split_config.yaml"
ALIASES = {"validation.split_ratio": "split.val_ratio"}
"""Keys of training that mean the same here."""


@dataclass
class SplitConfig:
    """How videos are cut and divided; `data.scanning.ScanSettings` and `data.dividing.Shares` check the values."""

    seconds: float = SECONDS
    stride: float = STRIDE
    val_ratio: float = 0.1
    test_ratio: float = 0.2
    silence_db: float = -60.0
    max_gap: float = 1.0
    scene_tolerance: float = 0.25
    rules: Rules = field(default_factory=Rules)


@dataclass
class SplitFile:
    """The one key of the file."""

    split: SplitConfig = field(default_factory=SplitConfig)


def compose_split(overrides: list[str], path: Path = FILE) -> SplitConfig:
    """The settings in `path` with overrides such as `split.stride=8`; ConfigError for what does not fit, naming the
    nearest key.
    """
    known = keys(SplitFile)
    stated = []
    for override in overrides:
        name, equals, value = override.lstrip("+~").partition("=")
        name = ALIASES.get(name, name)
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ConfigError(f"{override}: there is no key {name!r}; did you mean {near[0]!r}?")
        stated.append(f"{name}={value}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SplitFile), OmegaConf.load(path), OmegaConf.from_dotlist(stated))
        return cast(SplitFile, OmegaConf.to_object(merged)).split
    except OmegaConfBaseException as error:
        what = " ".join(str(error).split("\n    full_key:")[0].split())
        raise ConfigError(f"{getattr(error, 'full_key', None) or path.name}: {what}") from error
