"""The clips of a run: which train, which are held out, and their features as the loop needs them.

Features that fit go onto the device whole, their conditions projected once; larger sets stay in their files, and every
batch is read and projected, to the same numbers.

K clips, B batch, N latent tokens, C latent channels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.config import TrainConfig
from mmaudio.data.empty_captions import filled, untitled
from mmaudio.data.feature_store import TENSORS, ClipSet, Features, NoClips, StoredSet, open_features
from mmaudio.data.lazy_tensor import Column
from mmaudio.data.mmaudio_memmap import open_reference
from mmaudio.errors import DataError
from mmaudio.model.networks import Conditions, MMAudio
from mmaudio.utils.memory import free_memory

PROJECTED_AT_ONCE = 16
"""Clips that go through the input projections together."""
PROJECTIONS = ("clip_input_proj", "sync_input_proj", "text_input_proj", "clip_cond_proj", "text_cond_proj")
MEMORY_SHARE = 0.5
"""Of a device's free memory, what features may take: activations, gradients and the optimizer need the rest."""


def load_data(config: TrainConfig) -> tuple[StoredSet, StoredSet | None]:
    """Training and validation clips; the latter None where validation is off.

    DataError as `open_features` and, for `custom_finetune=false`, `open_reference` raise it.
    """
    train = _open(config, "train")
    if not config.validation.enabled:
        return train, None
    ratio = config.validation.split_ratio
    try:
        held_out = _open(config, "val")
    except NoClips as error:
        if ratio is None:
            raise DataError(
                f"{error}; validation.split_ratio=0.2 holds a fifth of the videos out, validation.enabled=false "
                "trains without"
            ) from error
        return split_anew(train, None, ratio)
    return (train, held_out) if ratio is None else split_anew(train, held_out, ratio)


def _open(config: TrainConfig, split: str) -> StoredSet:
    folder = Path(config.features_dir)
    if config.custom_finetune:
        return open_features(Path(config.clips_tsv), folder, split, config.model)
    return open_reference(folder, split, config.model)


def split_anew(train: ClipSet, held_out: ClipSet | None, ratio: float) -> tuple[StoredSet, StoredSet]:
    """Split training and validation clips, if any, by source video: `ratio` of the videos, one at least, is held out.

    Test clips that stand in for validation stay out. Raises DataError where all clips are from one video.
    """
    everything = train.stored()
    if held_out is not None and held_out.clips[0].split == "val":
        everything = everything.joined(held_out.stored())
    clips = everything.clips
    ranked = sorted({clip.video for clip in clips}, key=lambda video: hashlib.sha256(video.encode()).hexdigest())
    if len(ranked) < 2:
        raise DataError(f"validation.split_ratio={ratio:g}: there is one source video; leave the ratio null")
    chosen = set(ranked[: min(len(ranked) - 1, max(1, round(ratio * len(ranked))))])
    index = range(len(clips))
    kept, held = [i for i in index if clips[i].video not in chosen], [i for i in index if clips[i].video in chosen]
    return everything.subset(kept), everything.subset(held)


@dataclass(frozen=True)
class Material:
    """Clips as the loop asks for them: on the device where they fit, else read for every batch."""

    mean: Tensor | Column  # (K, N, C)
    std: Tensor | Column  # (K, N, C)
    projected: Conditions | None
    """Of every clip (K, ...); None where the projections are trained or the clips do not fit."""
    empty: Conditions | None
    """Of the learned empty rows (1, ...), projected; None where the projections are trained."""
    source: ClipSet | None
    """Raw features, where `projected` is None."""
    untitled: Tensor  # (K,) bool
    no_text: Tensor  # (L, text width), what clips without a caption have

    def __len__(self) -> int:
        return self.mean.shape[0]

    @property
    def resident(self) -> bool:
        """Whether the features are in the device's memory."""
        return isinstance(self.mean, Tensor)

    def nbytes(self) -> int:
        """Size of all tensors in memory."""
        tensors = [tensor for tensor in (self.mean, self.std) if isinstance(tensor, Tensor)]
        tensors += [] if self.projected is None else self.projected.tensors()
        tensors += self.source.tensors().values() if isinstance(self.source, Features) else []
        return sum(tensor.nbytes for tensor in tensors)

    def conditions(self, network: MMAudio, index: Tensor, no_video: Tensor, no_text: Tensor) -> Conditions:
        """Conditions of the clips `index` (B,); the empty rows where the masks (B,) say so."""
        if self.empty is not None:
            own, empty = self._projected(network, index), self.empty
            return Conditions(
                _pick(no_video, empty.clip_f, own.clip_f),
                _pick(no_video, empty.sync_f, own.sync_f),
                _pick(no_text, empty.text_f, own.text_f),
                _pick(no_video, empty.clip_c, own.clip_c),
                _pick(no_text, empty.text_c, own.text_c),
            )
        raw, no_text = self.raw(index), no_text | self.untitled[index]  # the row as training has made it by now
        return network.preprocess_conditions(
            _pick(no_video, network.empty_clip(1), raw.clip_features),
            _pick(no_video, network.empty_sync(1), raw.sync_features),
            _pick(no_text, network.empty_text(1), raw.text_features),
        )

    def _projected(self, network: MMAudio, index: Tensor) -> Conditions:
        if self.projected is not None:
            return self.projected.index(index)
        clips, places = torch.unique(index, return_inverse=True)  # validation has every clip at several times
        return project(network, self.raw(clips)).index(places)

    def raw(self, index: Tensor) -> Features:
        """Raw features of the clips `index` (B,), on its device."""
        assert self.source is not None
        rows = self.source.rows(index).map(lambda tensor: tensor.to(index.device))
        return filled(rows, self.untitled[index], self.no_text)


def _pick(mask: Tensor, empty: Tensor, own: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (own.ndim - 1)), empty.to(own.dtype), own)


@torch.no_grad()
def project(network: MMAudio, raw: Features) -> Conditions:
    """Through the frozen projections, in float32 wherever it is called."""
    with torch.autocast(raw.mean.device.type, enabled=False):
        return network.preprocess_conditions(raw.clip_features, raw.sync_features, raw.text_features)


def material(network: MMAudio, features: ClipSet, device: torch.device, resident: bool = True) -> Material:
    """The clips for training on `device`; with `resident` in its memory.

    An empty row takes the way of every other, so dropout may choose after projecting.
    """
    stored, frozen = features.stored(), not trains_projections(network)
    mean, std = (stored.column(name).to(device) for name in ("mean", "std"))
    missing, no_text = untitled(stored.captions).to(device), network.empty_text(1)[0].detach().clone()
    empty = None
    if frozen:
        with torch.no_grad():
            empty = network.empty_conditions(1)
    if not resident:
        return Material(mean, std, None, empty, stored, missing, no_text)
    if not frozen:
        loaded = stored.load().to(device)
        return Material(loaded.mean, loaded.std, None, None, loaded, missing, no_text)
    reading = Material(mean, std, None, empty, stored, missing, no_text)
    projected = _projected_all(network, reading, device)
    return Material(mean.whole(), std.whole(), projected, empty, None, missing, no_text)


def _projected_all(network: MMAudio, clips: Material, device: torch.device) -> Conditions:
    """Of every clip, a few at a time into tensors that are made once."""
    whole: tuple[Tensor, ...] = ()
    for first in range(0, len(clips), PROJECTED_AT_ONCE):
        rows = torch.arange(first, min(first + PROJECTED_AT_ONCE, len(clips)), device=device)
        part = project(network, clips.raw(rows)).tensors()
        whole = whole or tuple(tensor.new_empty(len(clips), *tensor.shape[1:]) for tensor in part)
        for all_rows, own in zip(whole, part, strict=True):
            all_rows[rows] = own
    return Conditions(*whole)


def trains_projections(network: MMAudio) -> bool:
    """Whether training changes what makes conditions of features."""
    return any(
        parameter.requires_grad and name.startswith((*PROJECTIONS, "empty_", "sync_pos_emb"))
        for name, parameter in network.named_parameters()
    )


@dataclass(frozen=True)
class Room:
    """Whether features fit into a device's memory."""

    needed: int
    """Bytes of all clips, their conditions projected where that is done once."""
    free: int
    """Bytes that the device has left for this process."""

    @property
    def enough(self) -> bool:
        """Whether MEMORY_SHARE of what is free takes them."""
        return self.needed <= MEMORY_SHARE * self.free

    def __str__(self) -> str:
        return f"{self.needed / 1e9:.2f} GB for {self.free / 1e9:.2f} GB of free memory"


def room(network: MMAudio, sets: Sequence[ClipSet], device: torch.device, processes: int = 1) -> Room:
    """For all clips of `sets`; on a CPU, `processes` share the memory."""
    free = free_memory(device)
    needed = sum(len(clips) * _bytes_per_clip(network, clips.stored()) for clips in sets)
    return Room(needed, free if device.type == "cuda" else free // processes)


def _bytes_per_clip(network: MMAudio, clips: StoredSet) -> int:
    """In float32."""
    numbers = {name: math.prod(clips.column(name).shape[1:]) for name in TENSORS}
    if trains_projections(network):
        return 4 * sum(numbers.values())
    size, spec = network.lengths, network.spec
    tokens = size.clip + size.latent + spec.text_tokens + 2  # the last two: one row each for CLIP and text
    return 4 * (numbers["mean"] + numbers["std"] + tokens * spec.width)
