"""The clips of a run: which train, which are held out, and their features as the loop needs them.

K clips, B batch, N latent tokens, C latent channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.config import TrainConfig
from mmaudio.data.features import TENSORS, Features, FeatureSet, feature_set, load_features
from mmaudio.data.reference import load_reference
from mmaudio.data.untitled import with_empty_text
from mmaudio.errors import DataError
from mmaudio.model.networks import Conditions, MMAudio

PROJECTED_AT_ONCE = 16
"""Clips that go through the input projections together."""
PROJECTIONS = ("clip_input_proj", "sync_input_proj", "text_input_proj", "clip_cond_proj", "text_cond_proj")


def load_data(config: TrainConfig) -> tuple[FeatureSet, FeatureSet | None]:
    """Training and validation clips; the latter None where validation is off.

    DataError as `load_features` and, for `custom_finetune=false`, `load_reference` raise it.
    """
    train = _load(config, "train")
    if not config.validation.enabled:
        return train, None
    held_out = _load(config, "val")
    ratio = config.validation.split_ratio
    return (train, held_out) if ratio is None else split_anew(train, held_out, ratio)


def _load(config: TrainConfig, split: str) -> FeatureSet:
    folder = Path(config.features_dir)
    if config.custom_finetune:
        return load_features(Path(config.clips_tsv), folder, split, config.model)
    return load_reference(folder, split, config.model)


def split_anew(train: FeatureSet, held_out: FeatureSet, ratio: float) -> tuple[FeatureSet, FeatureSet]:
    """Split training and validation clips again, by source video: `ratio` of the videos, one at least, is held out.

    Test clips that stand in for validation stay out. Raises DataError where all clips are from one video.
    """
    clips = list(train.clips)
    rows: Features = train
    if held_out.clips[0].split == "val":
        clips += held_out.clips
        rows = Features(*(torch.cat([getattr(train, name), getattr(held_out, name)]) for name in TENSORS))
    everything = feature_set(rows, clips, train.model)
    ranked = sorted({clip.video for clip in clips}, key=lambda video: hashlib.sha256(video.encode()).hexdigest())
    if len(ranked) < 2:
        raise DataError(f"validation.split_ratio={ratio:g}: there is one source video; leave the ratio null")
    chosen = set(ranked[: min(len(ranked) - 1, max(1, round(ratio * len(ranked))))])
    index = range(len(clips))
    kept, held = [i for i in index if clips[i].video not in chosen], [i for i in index if clips[i].video in chosen]
    return everything.subset(kept), everything.subset(held)


@dataclass(frozen=True)
class Material:
    """Clips on the device: posteriors, and conditions projected once where the projections do not change."""

    mean: Tensor  # (K, N, C)
    std: Tensor  # (K, N, C)
    projected: Conditions | None
    """Of every clip (K, ...); None where the projections are trained, so that every step projects anew."""
    empty: Conditions | None
    """Of the learned empty rows (1, ...), projected."""
    features: Features | None
    """Raw features, where `projected` is None."""

    def __len__(self) -> int:
        return self.mean.shape[0]

    def nbytes(self) -> int:
        """Size of all tensors."""
        tensors = [self.mean, self.std]
        tensors += [] if self.projected is None else self.projected.tensors()
        tensors += [] if self.features is None else self.features.tensors().values()
        return sum(tensor.nbytes for tensor in tensors)

    def conditions(self, network: MMAudio, index: Tensor, no_video: Tensor, no_text: Tensor) -> Conditions:
        """Conditions of the clips `index` (B,); the empty rows where the masks (B,) say so."""
        if self.projected is not None and self.empty is not None:
            own, empty = self.projected.index(index), self.empty
            return Conditions(
                _pick(no_video, empty.clip_f, own.clip_f),
                _pick(no_video, empty.sync_f, own.sync_f),
                _pick(no_text, empty.text_f, own.text_f),
                _pick(no_video, empty.clip_c, own.clip_c),
                _pick(no_text, empty.text_c, own.text_c),
            )
        assert self.features is not None
        raw = self.features.rows(index)
        return network.preprocess_conditions(
            _pick(no_video, network.empty_clip(1), raw.clip_features),
            _pick(no_video, network.empty_sync(1), raw.sync_features),
            _pick(no_text, network.empty_text(1), raw.text_features),
        )


def _pick(mask: Tensor, empty: Tensor, own: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (own.ndim - 1)), empty.to(own.dtype), own)


def material(network: MMAudio, features: FeatureSet, device: torch.device) -> Material:
    """The clips on `device`. An empty row takes the way of every other, so dropout may choose after projecting."""
    features = with_empty_text(features, network.empty_text(1)[0])
    mean, std = features.mean.to(device), features.std.to(device)
    trained = any(
        parameter.requires_grad and name.startswith((*PROJECTIONS, "empty_", "sync_pos_emb"))
        for name, parameter in network.named_parameters()
    )
    if trained:
        return Material(mean, std, None, None, features.to(device))
    with torch.no_grad():
        parts = []
        for rows in torch.split(torch.arange(len(features)), PROJECTED_AT_ONCE):
            raw = features.rows(rows).map(lambda tensor: tensor.to(device))
            parts.append(network.preprocess_conditions(raw.clip_features, raw.sync_features, raw.text_features))
        columns = zip(*(part.tensors() for part in parts), strict=True)
        projected = Conditions(*(torch.cat(column) for column in columns))
        return Material(mean, std, projected, network.empty_conditions(1), None)
