"""Adapters in repositories on the Hugging Face hub, by the hub's cache.

    fetch_adapter(Path("anna/dogs@v2"), offline=False)    # a local path of that name comes first, and nothing happens
    find_adapter(Path("anna/dogs@v2"))                     # where it lies; never connects

Safetensors files alone are loaded: a pickled file of somebody else may run code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from mmaudio.errors import WeightsError
from mmaudio.utils.heartbeat import has_bars
from mmaudio.utils.hub_errors import client_errors, explain_hub_error, hub_address
from mmaudio.utils.progress import PlainBar
from mmaudio.utils.terminal import print_lines

FILES = ("adapter_model.safetensors", "adapter_config.json")
"""What is fetched: PEFT's names."""
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:@([\w./-]+))?", re.ASCII)
_LOCAL_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""A name that ends so is a file's."""


@dataclass(frozen=True)
class HubName:
    """USER/NAME[@REVISION] in its parts."""

    repository: str
    revision: str | None


def parse_hub_name(path: Path) -> HubName | None:
    """The repository that `path` names; None for a file or folder here, and for what is no name of a repository."""
    match = _NAME.fullmatch(path.as_posix())
    if match is None or path.suffix in _LOCAL_SUFFIXES or path.exists():
        return None
    return HubName(match.group(1), match.group(2))


def fetch_adapter(path: Path, offline: bool) -> None:
    """Fetch the adapter that `path` names on the hub, or its changes; without a connection the cached one is used.

    Raises WeightsError where it cannot be had, or has no safetensors file that is the adapter for sure.
    """
    name = parse_hub_name(path)
    if name is None or offline:
        return
    print_lines(f"{path}: from {hub_address(name.repository)}", flush=True)
    try:
        if not (_find_snapshot(name) / FILES[0]).is_file():
            _find_snapshot(name, files=[_choose_file(name)])
    except client_errors() as error:
        address, reason = hub_address(name.repository), explain_hub_error(error, name.repository)
        raise WeightsError(
            f"{path}: no such file or folder here, and it cannot be fetched from {address}: {reason}"
        ) from error


def find_adapter(path: Path) -> Path:
    """The file or folder of an adapter: `path` itself, or where the hub's cache has what it names.

    Raises WeightsError for a name on the hub that is not in the cache.
    """
    name = parse_hub_name(path)
    if name is None:
        return path
    try:
        folder = _find_snapshot(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"no such file or folder here, and not in the hub's cache ({constants.HF_HUB_CACHE}); it is fetched where "
            "neither --offline nor HF_HUB_OFFLINE is set"
        ) from error
    others = list(folder.glob("*.safetensors"))
    if not (folder / FILES[0]).is_file() and len(others) != 1:
        raise WeightsError(f"the hub's cache has no {FILES[0]} of it, and nothing else is loaded from there")
    return folder if (folder / FILES[0]).is_file() else others[0]


def _find_snapshot(name: HubName, local_files_only: bool = False, files: Sequence[str] = FILES) -> Path:
    """The folder of the revision in the cache, with those of the `files` that the repository has."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name.repository,
            revision=name.revision,
            allow_patterns=list(files),
            local_files_only=local_files_only,
            tqdm_class=None if has_bars() else PlainBar,
        )
    )


def _choose_file(name: HubName) -> str:
    """The only safetensors file of a repository without PEFT's; WeightsError where there is none, or several."""
    from huggingface_hub import HfApi

    files = HfApi().list_repo_files(name.repository, revision=name.revision)
    candidates = [file for file in files if file.endswith(".safetensors") and "/" not in file]
    if len(candidates) == 1:
        return candidates[0]
    pickled = [file for file in files if file.endswith(_LOCAL_SUFFIXES[:-1])]
    reason = f"; {pickled[0]} is not loaded: such a file may run code" if pickled else ""
    number = f"{len(candidates)} safetensors files and no {FILES[0]}" if candidates else f"no {FILES[0]}"
    raise WeightsError(f"{hub_address(name.repository)} holds {number}{reason}")
