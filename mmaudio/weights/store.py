"""Weights files on disk: where they lie, fetching those that are absent, and reading them.

    weights.fetch("small_16k", ("network",), folder=None, offline=False)    # once, by who starts the work
    state = weights.load_part("small_16k", "network").state                 # memory-mapped

An embedded model's files ship with the package, in `mmaudio/assets/<model>/`. A released model's files are looked for
in the folder that the user names, in `./weights`, in `./ext_weights` and in the caches. Only `fetch` connects anywhere.
"""

from __future__ import annotations

import pickle
import shutil
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmaudio.errors import WeightsError
from mmaudio.model.spec import model_spec
from mmaudio.model.state_dict import why_not
from mmaudio.utils.checksums import damage, digests
from mmaudio.utils.progress import amount
from mmaudio.weights import hub
from mmaudio.weights.download import Part, download
from mmaudio.weights.registry import PARTS, WeightsFile, weights_file

ASSETS = Path(__file__).parent / "assets"
"""Where embedded models' files ship."""
FOLDERS = ("weights", "ext_weights")
"""Looked in, below the working directory, after the folder that the user names."""
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)
"""What reading a broken file of weights ends with."""


@dataclass(frozen=True)
class Weights:
    """A state dict and where it came from."""

    path: Path | None
    """None where the part needs no weights."""
    state: dict[str, Tensor]

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return sha256(b"").hexdigest() if self.path is None else file_hash(self.path)


class CorruptError(WeightsError):
    """A file whose checksum is wrong."""


def cache() -> Path:
    """Where files are fetched to that do not come through the hub's client, below the Hugging Face folder (HF_HOME)."""
    return Path(constants.HF_ASSETS_CACHE) / "mmaudio"


def find(model: str, part: str, folder: Path | None = None) -> Path | None:
    """The file of `part` of `model`, None where it needs none; WeightsError says where it was looked for."""
    file = weights_file(model, part)
    if file is None:
        return None
    for place in _folders(model, folder):
        for name in file.names:
            if (place / name).is_file():
                return place / name
    found = hub.cached(file.repository, file.names) if file.repository else None
    if found is None:
        raise WeightsError(
            f"{file.name}: not found (the {part} of {model}); looked in {_places(model, folder)}. "
            f"Put it there, or name its folder; it comes from {file.source}"
        )
    return found


def missing(model: str, folder: Path | None = None, parts: Iterable[str] = PARTS) -> list[WeightsFile]:
    """The files of `parts` of `model` that are not on disk, empty where they all are; WeightsError for no `folder`."""
    _folders(model, folder)
    absent = []
    for part in parts:
        try:
            find(model, part, folder)
        except WeightsError:
            file = weights_file(model, part)
            assert file is not None
            absent.append(file)
    return absent


def require(model: str, folder: Path | None = None, parts: Iterable[str] = PARTS) -> None:
    """WeightsError that lists every file of `parts` of `model` that is not on disk."""
    absent = missing(model, folder, parts)
    if absent:
        files = "".join(f"\n  {' or '.join(file.names)}  from {file.source}" for file in absent)
        places = _places(model, folder)
        raise WeightsError(
            f"{len(absent)} weights files of {model} are not in {places}; put them into ./weights, or run once without "
            f"--offline and HF_HUB_OFFLINE:{files}"
        )


def fetch(model: str, parts: Sequence[str] = PARTS, folder: Path | None = None, offline: bool = False) -> None:
    """See to it that the files of `parts` of `model` are on disk and sound, by fetching what is absent.

    `offline`: nothing is connected to. A file in the cache that is corrupt is put aside and fetched again. Raises
    WeightsError where a file is corrupt, or absent and cannot be fetched.
    """
    if offline:
        require(model, folder, parts)
    absent = missing(model, folder, parts)
    check_room(absent)
    for part in parts:
        file = weights_file(model, part)
        if file in absent:
            _download(file)
        if file is None or not file.size:
            continue
        path = find(model, part, folder)
        assert path is not None
        try:
            said = check(path, file)
        except CorruptError:
            if offline or path.parent != cache():
                raise
            _download(file)
            continue
        if said:
            print(f"note: {said}", file=sys.stderr, flush=True)


def check_room(files: Iterable[WeightsFile]) -> None:
    """WeightsError where the caches' disks have no room for files that are to be fetched."""
    wanted: dict[int, int] = {}
    for file in files:
        place = _existing(hub.cache() if file.repository else cache())
        disk = place.stat().st_dev
        wanted[disk] = wanted.get(disk, 0) + max(0, file.size - Part.of(cache() / file.name).size)
        free = shutil.disk_usage(place).free
        if free < wanted[disk]:
            raise WeightsError(
                f"{place}: {amount(free)} free, {amount(wanted[disk])} or more are needed for weights; make room, or "
                "set HF_HOME to a folder on another disk"
            )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def check(path: Path, file: WeightsFile) -> str:
    """What is remarkable about a file: that it is not the released one. Raises CorruptError for one that is broken.

    A file of gigabytes is read once for this; its checksums are noted in the cache.
    """
    expected = hub.expected_sha256(path)
    found = digests(path, _notes())
    if expected is not None and found.sha256 != expected:
        raise CorruptError(f"{path}: corrupt (SHA-256 {found.sha256}, the hub says {expected}); move it away")
    if file.md5 is None or found.md5 == file.md5:
        return ""
    broken = "" if path.parent == cache() else damage(path)
    if broken or path.parent == cache():
        reason = broken or f"MD5 {found.md5}, {file.md5} is expected"
        raise CorruptError(f"{path}: corrupt ({reason}); move it away and fetch it again from {file.source}")
    return f"{path} is not the released file (MD5 {found.md5}, that has {file.md5}); it is used as it is"


def load_part(model: str, part: str, folder: Path | None = None) -> Weights:
    """The state dict of `part` of `model`, memory-mapped; WeightsError for a file that is missing or is no state dict.

    Writing to a tensor makes private copies of its pages: the file never changes.
    """
    path = find(model, part, folder)
    if path is None:
        return Weights(None, {})
    file = weights_file(model, part)
    assert file is not None
    if file.size:
        check(path, file)
    return Weights(path, read_state(path, file.key))


def identity(model: str, part: str, folder: Path | None = None) -> str:
    """SHA-256 of the file of `part` of `model`, without loading it."""
    return Weights(find(model, part, folder), {}).identity


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; a large file's is noted in the cache."""
    return digests(path, _notes()).sha256


def _notes() -> Path:
    return cache() / "checksums"


def _download(file: WeightsFile) -> None:
    if file.repository:
        hub.fetch(file.repository, file.names, file.size)
        return
    print(f"{file.name}: fetching about {amount(file.size)} from {file.source}", flush=True)
    download(file.source, cache() / file.name, file.md5)


def _folders(model: str, folder: Path | None) -> list[Path]:
    embedded = model_spec(model).embedded
    own = [ASSETS / model] if embedded else [*(Path(name) for name in FOLDERS), cache()]
    if folder is not None and not folder.is_dir():
        raise WeightsError(f"{folder}: {'a file' if folder.exists() else 'not there'}; a folder of weights is expected")
    return own if folder is None else [folder, *own]


def _places(model: str, folder: Path | None) -> str:
    places = _folders(model, folder)
    if not model_spec(model).embedded:
        places.append(hub.cache())
    return ", ".join(str(place) for place in places)


def read_state(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, memory-mapped, or in its entry `key`; WeightsError where there is none."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        mapped = zipfile.is_zipfile(path)  # files of before torch 1.6 are no archives, and cannot be mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        state = loaded if key is None else loaded[key]
    except UNREADABLE as error:
        raise WeightsError(f"{path}: cannot be read as weights ({why_not(error)}); fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no state dict; is it the right file?")
    return dict(state)
