"""Local store of weights files: lookup, fetching of absent files, checksums and reading.

    weights.fetch_files("small_16k", ("network",), folder=None, offline=False)    # once, before the work starts
    state_dict = weights.load_weights("small_16k", "network").state_dict          # memory-mapped

A bundled model's files ship with the package, in `mmaudio/assets/<model>/`. A released model's files are looked up in
the user's folder, in `./weights`, in `./ext_weights` and in the caches. Only `fetch_files` connects to a server.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmaudio.errors import WeightsError
from mmaudio.model.spec import model_spec
from mmaudio.model.state_dict import LOAD_ERRORS, read_failure
from mmaudio.utils.checksums import file_digests, find_damage
from mmaudio.utils.progress import format_bytes
from mmaudio.utils.terminal import print_lines
from mmaudio.weights import hub
from mmaudio.weights.download import PartialFile, download
from mmaudio.weights.registry import COMPONENTS, WeightsFile, weights_file

ASSETS = Path(__file__).parents[1] / "assets"
"""Folder of the bundled models' files."""
GENERAL_VIDEOS_FOLDER = "general"
"""Folder beside a bundled model's weights, of videos of its own domain: .mp4 files, captions in .txt files."""
BASE_SAMPLES_FILE = "base_samples.safetensors"
"""File beside a bundled model's weights, of its own sounds of generic captions (`finetune.base_samples`)."""
FOLDERS = ("weights", "ext_weights")
"""Folders below the working directory that are searched after the user's."""
READ_ERRORS = (*LOAD_ERRORS, zipfile.BadZipFile, SafetensorError)
"""Exceptions of torch and safetensors for a broken file."""


@dataclass(frozen=True)
class Weights:
    """A state dict and the file that it was read from."""

    path: Path | None
    """None for a component without weights."""
    state_dict: dict[str, Tensor]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return _sha256(self.path)


class CorruptFileError(WeightsError):
    """A file whose checksum is wrong."""


def cache_folder() -> Path:
    """The cache for files from outside the hub, below the Hugging Face folder (HF_HOME)."""
    return Path(constants.HF_ASSETS_CACHE) / "mmaudio"


def find_file(model: str, component: str, folder: Path | None = None) -> Path | None:
    """The file of `component` of `model`, None where it needs none; WeightsError lists the folders that were searched.

    The user's `folder` is searched first.
    """
    file = weights_file(model, component)
    if file is None:
        return None
    for place in _search_folders(model, folder):
        for name in file.names:
            if (place / name).is_file():
                return place / name
    cached = hub.find_cached(file.repository, file.names) if file.repository else None
    if cached is None:
        raise WeightsError(
            f"{file.name}: not found (the {component} of {model}); looked in {_format_folders(model, folder)}. "
            f"Put it there, or name its folder; it comes from {file.source}"
        )
    return cached


def missing_files(model: str, folder: Path | None = None, components: Iterable[str] = COMPONENTS) -> list[WeightsFile]:
    """The files of `components` of `model` that are not on disk. WeightsError if `folder` does not exist."""
    _search_folders(model, folder)
    missing = []
    for component in components:
        try:
            find_file(model, component, folder)
        except WeightsError:
            file = weights_file(model, component)
            assert file is not None
            missing.append(file)
    return missing


def require_files(model: str, folder: Path | None = None, components: Iterable[str] = COMPONENTS) -> None:
    """Raise WeightsError that lists every file of `components` of `model` that is not on disk."""
    missing = missing_files(model, folder, components)
    if missing:
        lines = "".join(f"\n  {' or '.join(file.names)}  from {file.source}" for file in missing)
        raise WeightsError(
            f"{len(missing)} weights files of {model} are not in {_format_folders(model, folder)}; put them into "
            f"./weights, or run once without --offline and HF_HUB_OFFLINE:{lines}"
        )


def fetch_files(
    model: str, components: Sequence[str] = COMPONENTS, folder: Path | None = None, offline: bool = False
) -> None:
    """Verify the files of `components` of `model`, after fetching those that are not on disk.

    `offline`: nothing is fetched. A corrupt file in the cache is moved aside and fetched again. Raises WeightsError
    where a file is corrupt, or missing and cannot be fetched.
    """
    if offline:
        require_files(model, folder, components)
    missing = missing_files(model, folder, components)
    check_disk_space(missing)
    checked: list[tuple[Path, WeightsFile]] = []
    for component in components:
        file = weights_file(model, component)
        if file in missing:
            _download(file)
        if file is not None and file.size:
            path = find_file(model, component, folder)
            assert path is not None
            checked.append((path, file))
    with ThreadPoolExecutor(max(1, len(checked)), "checksums") as pool:  # side by side: all of them take seconds
        futures = [pool.submit(verify_file, path, file) for path, file in checked]
    for (path, file), future in zip(checked, futures, strict=True):
        try:
            note = future.result()
        except CorruptFileError:
            if offline or path.parent != cache_folder():
                raise
            _download(file)
            continue
        if note:
            print_lines(f"note: {note}", file=sys.stderr, flush=True)


def check_disk_space(files: Iterable[WeightsFile]) -> None:
    """Raise WeightsError where the caches' disks have no space for `files`."""
    required: dict[int, int] = {}  # bytes by disk
    for file in files:
        folder = _existing_parent(hub.cache_folder() if file.repository else cache_folder())
        disk = folder.stat().st_dev
        partial = PartialFile.of(cache_folder() / file.name)
        required[disk] = required.get(disk, 0) + max(0, file.size - partial.size)
        free = shutil.disk_usage(folder).free
        if free < required[disk]:
            raise WeightsError(
                f"{folder}: {format_bytes(free)} free, {format_bytes(required[disk])} or more are needed for weights; "
                "make room, or set HF_HOME to a folder on another disk"
            )


def _existing_parent(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def verify_file(path: Path, file: WeightsFile) -> str:
    """Check the checksums of a file; a note where it is not the released one, else empty. CorruptFileError if broken.

    A large file is read once: its checksums are remembered in the cache.
    """
    expected_sha256 = hub.expected_sha256(path)
    actual = file_digests(path, _checksum_notes())
    if expected_sha256 is not None and actual.sha256 != expected_sha256:
        raise CorruptFileError(
            f"{path}: corrupt (SHA-256 {actual.sha256}, the hub says {expected_sha256}); move it away"
        )
    if file.md5 is None or actual.md5 == file.md5:
        return ""
    in_cache = path.parent == cache_folder()
    damage = "" if in_cache else find_damage(path)
    if damage or in_cache:
        reason = damage or f"MD5 {actual.md5}, {file.md5} is expected"
        raise CorruptFileError(f"{path}: corrupt ({reason}); move it away and fetch it again from {file.source}")
    return f"{path} is not the released file (MD5 {actual.md5}, that has {file.md5}); it is used as it is"


def load_weights(model: str, component: str, folder: Path | None = None) -> Weights:
    """Load the state dict of `component` of `model`, memory-mapped.

    Writing to a tensor makes private copies of its pages: the file never changes. Raises WeightsError for a file that
    is missing, corrupt or no state dict.
    """
    path = find_file(model, component, folder)
    if path is None:
        return Weights(None, {})
    file = weights_file(model, component)
    assert file is not None
    if file.size:
        verify_file(path, file)
    return Weights(path, read_state_dict(path, file.key))


def component_sha256(model: str, component: str, folder: Path | None = None) -> str:
    """SHA-256 of the file of `component` of `model`, without loading it; that of no bytes where there is no file."""
    return _sha256(find_file(model, component, folder))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; a large file's is remembered in the cache."""
    return file_digests(path, _checksum_notes()).sha256


def _sha256(path: Path | None) -> str:
    return hashlib.sha256(b"").hexdigest() if path is None else file_sha256(path)


def _checksum_notes() -> Path:
    return cache_folder() / "checksums"


def _download(file: WeightsFile) -> None:
    if file.repository:
        hub.fetch_file(file.repository, file.names, file.size)
        return
    print_lines(f"{file.name}: fetching about {format_bytes(file.size)} from {file.source}", flush=True)
    download(file.source, cache_folder() / file.name, file.md5, size=file.size)


def _search_folders(model: str, folder: Path | None) -> list[Path]:
    defaults = [ASSETS / model] if model_spec(model).bundled else [*map(Path, FOLDERS), cache_folder()]
    if folder is not None and not folder.is_dir():
        raise WeightsError(f"{folder}: {'a file' if folder.exists() else 'not there'}; a folder of weights is expected")
    return defaults if folder is None else [folder, *defaults]


def _format_folders(model: str, folder: Path | None) -> str:
    folders = _search_folders(model, folder)
    if not model_spec(model).bundled:
        folders.append(hub.cache_folder())
    return ", ".join(str(path) for path in folders)


def read_state_dict(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """Read the state dict in a file, or in its entry `key`, memory-mapped; WeightsError where there is none."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        mmap = zipfile.is_zipfile(path)  # files from before torch 1.6 are no archives and cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        state_dict = content if key is None else content[key]
    except READ_ERRORS as error:
        raise WeightsError(f"{path}: cannot be read as weights ({read_failure(error)}); fetch it again") from error
    if not isinstance(state_dict, dict) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise WeightsError(f"{path}: holds no state dict; is it the right file?")
    return dict(state_dict)
