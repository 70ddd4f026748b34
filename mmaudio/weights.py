"""Weights files: what each part of a base model is called, where it lies, and how it is read.

An embedded model's files ship with the package, in `mmaudio/assets/<model>/`. A released model's files are looked
for in the folder that the user names, then in `./weights` and `./ext_weights`. Nothing is downloaded here.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmaudio.errors import WeightsError
from mmaudio.model.spec import ModelSpec, model_spec

PARTS = ("network", "vae", "vocoder", "synchformer", "clip")
"""The parts of a base model, each a file of its own; an embedded model's vocoder may need none."""
ASSETS = Path(__file__).parent / "assets"
"""Where embedded models' files ship."""
FOLDERS = ("weights", "ext_weights")
"""Looked in, below the working directory, after the folder that the user names."""

_HUB = "https://huggingface.co"
_RELEASE = "https://github.com/hkchengrex/MMAudio/releases/download/v0.1"


@dataclass(frozen=True)
class WeightsFile:
    """One released file: its names on disk (the first is the usual one), where it comes from, its MD5 if published."""

    names: tuple[str, ...]
    source: str
    md5: str | None = None
    key: str | None = None
    """The entry of the file that holds the state dict, where it is not the whole file."""


@dataclass(frozen=True)
class Weights:
    """A state dict and where it came from."""

    path: Path | None
    """None where the part needs no weights."""
    state: dict[str, Tensor]
    identity: str
    """SHA-256 of the file, in hexadecimal."""


_NETWORK_MD5 = {
    "small_16k": "af93cde404179f58e3919ac085b8033b",
    "small_44k": "babd74c884783d13701ea2820a5f5b6d",
    "medium_44k": "5a56b6665e45a1e65ada534defa903d0",
    "large_44k": "fed96c325a6785b85ce75ae1aafd2673",
    "large_44k_v2": "01ad4464f049b2d7efdaa4c1a59b8dfe",
}
_CODEC_FILES = {
    ("vae", "16k"): WeightsFile(("v1-16.pth",), f"{_RELEASE}/v1-16.pth", "69f56803f59a549a1a507c93859fd4d7"),
    ("vae", "44k"): WeightsFile(("v1-44.pth",), f"{_RELEASE}/v1-44.pth", "fab020275fa44c6589820ce025191600"),
    ("vocoder", "16k"): WeightsFile(
        ("best_netG.pt",), f"{_RELEASE}/best_netG.pt", "eeaf372a38a9c31c362120aba2dde292", "generator"
    ),
    ("vocoder", "44k"): WeightsFile(
        ("bigvgan_generator.pt",), f"{_HUB}/nvidia/bigvgan_v2_44khz_128band_512x", key="generator"
    ),
}
_SYNCHFORMER_FILE = WeightsFile(
    ("synchformer_state_dict.pth",),
    f"{_RELEASE}/synchformer_state_dict.pth",
    "5b2f5594b0730f70e41e549b7c94390c",
)
_CLIP_FILE = WeightsFile(
    ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"), f"{_HUB}/apple/DFN5B-CLIP-ViT-H-14-384"
)


def weights_file(model: str, part: str) -> WeightsFile | None:
    """What `part` of `model` is called; None where it needs no weights. ConfigError for an unknown model."""
    spec = model_spec(model)
    if part == "vocoder" and spec.codec.vocoder == "griffin_lim":
        return None
    if spec.embedded:
        return WeightsFile((f"{part}.safetensors",), "the package itself: install it again")
    if part == "network":
        name = f"mmaudio_{model}.pth"
        return WeightsFile((name,), f"{_HUB}/hkchengrex/MMAudio/resolve/main/weights/{name}", _NETWORK_MD5[model])
    if part == "synchformer":
        return _SYNCHFORMER_FILE
    return _CLIP_FILE if part == "clip" else _CODEC_FILES[part, spec.codec.name]


def find(model: str, part: str, folder: Path | None = None) -> Path | None:
    """The file of `part` of `model`, None where it needs none; WeightsError says where it was looked for."""
    file = weights_file(model, part)
    if file is None:
        return None
    folders = _folders(model_spec(model), folder)
    for place in folders:
        for name in file.names:
            if (place / name).is_file():
                return place / name
    raise WeightsError(
        f"{file.names[0]}: not found (the {part} of {model}); looked in {_places(folders)}. "
        f"Put it there, or name its folder; it comes from {file.source}"
    )


def require(model: str, folder: Path | None = None) -> None:
    """WeightsError that lists every file of `model` that is not on disk."""
    absent = missing(model, folder)
    if absent:
        files = "".join(f"\n  {file.names[0]}  from {file.source}" for file in absent)
        looked = _places(_folders(model_spec(model), folder))
        raise WeightsError(f"{len(absent)} weights files of {model} are not in {looked}:{files}")


def _places(folders: list[Path]) -> str:
    return ", ".join(str(place) for place in folders)


def missing(model: str, folder: Path | None = None) -> list[WeightsFile]:
    """The files of `model` that are not on disk, empty where it is complete."""
    absent = []
    for part in PARTS:
        try:
            find(model, part, folder)
        except WeightsError:
            file = weights_file(model, part)
            assert file is not None
            absent.append(file)
    return absent


def load_part(model: str, part: str, folder: Path | None = None) -> Weights:
    """The state dict of `part` of `model`, memory-mapped; WeightsError for a file that is missing or is no state dict.

    Writing to a tensor makes private copies of its pages: the file never changes.
    """
    path = find(model, part, folder)
    if path is None:
        return Weights(None, {}, hashlib.sha256(b"").hexdigest())
    file = weights_file(model, part)
    assert file is not None
    return Weights(path, _read(path, file.key), file_hash(path))


def identity(model: str, part: str, folder: Path | None = None) -> str:
    """SHA-256 of the file of `part` of `model`, without loading it."""
    path = find(model, part, folder)
    return hashlib.sha256(b"").hexdigest() if path is None else file_hash(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _folders(spec: ModelSpec, folder: Path | None) -> list[Path]:
    own = [ASSETS / spec.name] if spec.embedded else [Path(name) for name in FOLDERS]
    return own if folder is None else [folder, *own]


def _read(path: Path, key: str | None) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        mapped = zipfile.is_zipfile(path)  # files of before torch 1.6 are no archives, and cannot be mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        state = loaded if key is None else loaded[key]
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as weights ({error}); fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no state dict; is it the right file?")
    return dict(state)
