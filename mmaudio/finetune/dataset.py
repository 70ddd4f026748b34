"""Clips with latents and conditions, ready for the network: in the device's memory, or read for every batch.

Features that fit go onto the device whole, their conditions projected once; larger sets stay in their files, and every
batch is read and projected, to the same numbers.

K clips, B batch, N latent tokens, C latent channels, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmaudio.data.empty_captions import empty_caption_mask, fill_text_features
from mmaudio.data.feature_set import AnyFeatureSet, Features
from mmaudio.data.lazy_tensor import LazyTensor
from mmaudio.model.networks import Conditions, MMAudio

PROJECTION_BATCH_SIZE = 16
"""Clips that go through the input projections together."""
PROJECTIONS = ("clip_input_proj", "sync_input_proj", "text_input_proj", "clip_cond_proj", "text_cond_proj")


@dataclass(frozen=True)
class ClipDataset:
    """Latents and conditions of K clips: on the device where they fit, else read for every batch."""

    mean: Tensor | LazyTensor  # (K, N, C)
    std: Tensor | LazyTensor  # (K, N, C)
    projected: Conditions | None
    """Of every clip (K, ...); None where the projections are trained or the clips do not fit."""
    empty: Conditions | None
    """Of the learned empty rows (1, ...), projected; None where the projections are trained."""
    source: AnyFeatureSet | None
    """Raw features, where `projected` is None."""
    empty_caption_mask: Tensor  # (K,) bool
    empty_text: Tensor  # (L, text width), text features of clips without a caption

    def __len__(self) -> int:
        return self.mean.shape[0]

    @property
    def resident(self) -> bool:
        """True where the features are in the device's memory."""
        return isinstance(self.mean, Tensor)

    def nbytes(self) -> int:
        """Size of all tensors in memory."""
        tensors = [tensor for tensor in (self.mean, self.std) if isinstance(tensor, Tensor)]
        tensors += [] if self.projected is None else self.projected.tensors()
        tensors += self.source.tensors().values() if isinstance(self.source, Features) else []
        return sum(tensor.nbytes for tensor in tensors)

    def conditions(self, network: MMAudio, index: Tensor, no_video: Tensor, no_text: Tensor) -> Conditions:
        """Conditions of the clips `index` (B,); the empty rows where the masks (B,) are true."""
        if self.empty is not None:
            present, empty = self._projected(network, index), self.empty
            return Conditions(
                _mask_rows(no_video, empty.clip_f, present.clip_f),
                _mask_rows(no_video, empty.sync_f, present.sync_f),
                _mask_rows(no_text, empty.text_f, present.text_f),
                _mask_rows(no_video, empty.clip_c, present.clip_c),
                _mask_rows(no_text, empty.text_c, present.text_c),
            )
        raw = self.raw_features(index)
        no_text = no_text | self.empty_caption_mask[index]  # the empty row is trained: use its current value
        return network.preprocess_conditions(
            _mask_rows(no_video, network.empty_clip(1), raw.clip_features),
            _mask_rows(no_video, network.empty_sync(1), raw.sync_features),
            _mask_rows(no_text, network.empty_text(1), raw.text_features),
        )

    def raw_features(self, index: Tensor) -> Features:
        """Raw features of the clips `index` (B,), on its device."""
        assert self.source is not None
        rows = self.source.select(index).map(lambda tensor: tensor.to(index.device))
        return fill_text_features(rows, self.empty_caption_mask[index], self.empty_text)

    def _projected(self, network: MMAudio, index: Tensor) -> Conditions:
        if self.projected is not None:
            return self.projected.select(index)
        clips, positions = torch.unique(index, return_inverse=True)  # validation has every clip at several times
        return project(network, self.raw_features(clips)).select(positions)


def _mask_rows(mask: Tensor, empty: Tensor, present: Tensor) -> Tensor:
    """`present` (B, ...) with `empty` (1, ...) in the rows where the mask (B,) is true."""
    return torch.where(mask.view(-1, *[1] * (present.ndim - 1)), empty.to(present.dtype), present)


@torch.no_grad()
def project(network: MMAudio, raw: Features) -> Conditions:
    """Apply the frozen input projections, in float32 even under autocast."""
    with torch.autocast(raw.mean.device.type, enabled=False):
        return network.preprocess_conditions(raw.clip_features, raw.sync_features, raw.text_features)


def build_dataset(
    network: MMAudio, features: AnyFeatureSet, device: torch.device, resident: bool = True
) -> ClipDataset:
    """The clips for training on `device`; with `resident` in its memory.

    The empty rows are projected like all others, so condition dropout can choose after projecting.
    """
    stored, projections_are_frozen = features.to_lazy(), not trains_projections(network)
    mean, std = (stored.lazy_tensor(name).to(device) for name in ("mean", "std"))
    captions = empty_caption_mask(stored.captions).to(device), network.empty_text(1)[0].detach().clone()
    empty = None
    if projections_are_frozen:
        with torch.no_grad():
            empty = network.empty_conditions(1)
    if not resident:
        return ClipDataset(mean, std, None, empty, stored, *captions)
    if not projections_are_frozen:
        loaded = stored.load().to(device)
        return ClipDataset(loaded.mean, loaded.std, None, None, loaded, *captions)
    projected = _project_all(network, ClipDataset(mean, std, None, empty, stored, *captions), device)
    return ClipDataset(mean.load(), std.load(), projected, empty, None, *captions)


def _project_all(network: MMAudio, dataset: ClipDataset, device: torch.device) -> Conditions:
    """The conditions of every clip, PROJECTION_BATCH_SIZE at a time, into tensors that are allocated once."""
    outputs: tuple[Tensor, ...] = ()
    for start in range(0, len(dataset), PROJECTION_BATCH_SIZE):
        rows = torch.arange(start, min(start + PROJECTION_BATCH_SIZE, len(dataset)), device=device)
        batch = project(network, dataset.raw_features(rows)).tensors()
        outputs = outputs or tuple(tensor.new_empty(len(dataset), *tensor.shape[1:]) for tensor in batch)
        for output, values in zip(outputs, batch, strict=True):
            output[rows] = values
    return Conditions(*outputs)


def trains_projections(network: MMAudio) -> bool:
    """True where training changes the input projections, the empty rows or the sync position embedding."""
    return any(
        parameter.requires_grad and name.startswith((*PROJECTIONS, "empty_", "sync_pos_emb"))
        for name, parameter in network.named_parameters()
    )
