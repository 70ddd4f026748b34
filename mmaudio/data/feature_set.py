"""Features of clips in memory (`FeatureSet`) or left in their files (`LazyFeatureSet`).

Legend: K clips, N latent tokens, C latent channels, V CLIP frames, S sync tokens, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mmaudio.data.clips import Clip
from mmaudio.data.lazy_tensor import LazyTensor
from mmaudio.errors import DataError


@dataclass(frozen=True)
class Features:
    """Features of some clips, float32."""

    mean: Tensor
    """Posterior mean of the latents (K, N, C), not normalised."""
    std: Tensor
    """Posterior standard deviation (K, N, C)."""
    clip_features: Tensor
    """(K, V, image width)."""
    sync_features: Tensor
    """(K, S, sync width)."""
    text_features: Tensor
    """(K, L, text width)."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Features:
        """A copy with `function` applied to every tensor."""
        return Features(*(function(tensor) for tensor in self.tensors().values()))

    def select(self, index: Tensor) -> Features:
        """The features of the clips number `index`, int64."""
        return self.map(lambda tensor: tensor[index])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: getattr(self, name) for name in FEATURE_NAMES}


FEATURE_NAMES = tuple(field.name for field in fields(Features))
"""Names of the tensors of a shard or a memory map."""


class ClipMetadata:
    """Ids, videos and captions of the clips of a set."""

    clips: list[Clip]
    model: str

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def ids(self) -> list[str]:
        """The clips' ids."""
        return [clip.id for clip in self.clips]

    @property
    def videos(self) -> list[str]:
        """The clips' source videos."""
        return [clip.video for clip in self.clips]

    @property
    def captions(self) -> list[str]:
        """The clips' captions."""
        return [clip.caption for clip in self.clips]

    @property
    def seconds(self) -> float:
        """Duration of each clip."""
        return self.clips[0].seconds


@dataclass(frozen=True)
class FeatureSet(ClipMetadata, Features):
    """The clips of one split in memory, in the table's order."""

    clips: list[Clip]
    model: str
    """The model that extraction was run for; others with the same codec and encoders can use these features too."""

    def to(self, device: torch.device | str) -> FeatureSet:
        """The same clips with their tensors on `device`."""
        return build_feature_set(self.map(lambda tensor: tensor.to(device)), self.clips, self.model)

    def __getitem__(self, index: Tensor) -> Features:
        """The features of the clips number `index` (B,), int64, on the set's device."""
        return self.select(index)

    def subset(self, index: Sequence[int]) -> FeatureSet:
        """A set of the clips number `index`, in that order."""
        rows = torch.as_tensor(list(index), device=self.mean.device)
        return build_feature_set(self.select(rows), [self.clips[i] for i in index], self.model)

    def load(self) -> FeatureSet:
        """The set itself."""
        return self

    def to_lazy(self) -> LazyFeatureSet:
        """The same as a lazy set whose only shard is this one."""
        return build_lazy_feature_set([self], [range(len(self))], self.clips, self.model)


def build_feature_set(features: Features, clips: list[Clip], model: str) -> FeatureSet:
    """The set of `clips` with their features."""
    return FeatureSet(
        features.mean,
        features.std,
        features.clip_features,
        features.sync_features,
        features.text_features,
        clips,
        model,
    )


@dataclass(frozen=True)
class LazyFeatureSet(ClipMetadata):
    """The clips of one split, in the table's order, whose features stay in their files until they are read."""

    shards: list[Features]
    """Of every file, memory-mapped."""
    locations: Tensor
    """(K, 2), int64: the shard of every clip, and its row there."""
    clips: list[Clip]
    model: str
    """As FeatureSet's."""

    def lazy_tensor(self, name: str) -> LazyTensor:
        """The tensor `name` of FEATURE_NAMES of all clips."""
        return LazyTensor([getattr(shard, name) for shard in self.shards], self.locations)

    def select(self, index: Tensor) -> Features:
        """The features of the clips number `index` (B,), int64, read into memory."""
        return Features(*(self.lazy_tensor(name)[index] for name in FEATURE_NAMES))

    def subset(self, index: Sequence[int]) -> LazyFeatureSet:
        """A set of the clips number `index`, in that order."""
        return replace(self, locations=self.locations[list(index)], clips=[self.clips[i] for i in index])

    def concat(self, other: LazyFeatureSet) -> LazyFeatureSet:
        """The clips of both, those of `other` last."""
        locations = torch.cat([self.locations, other.locations + torch.tensor([len(self.shards), 0])])
        return LazyFeatureSet([*self.shards, *other.shards], locations, self.clips + other.clips, self.model)

    def load(self) -> FeatureSet:
        """The same in memory."""
        features = Features(*(self.lazy_tensor(name).load() for name in FEATURE_NAMES))
        return build_feature_set(features, self.clips, self.model)

    def to_lazy(self) -> LazyFeatureSet:
        """The set itself."""
        return self


AnyFeatureSet = FeatureSet | LazyFeatureSet
"""Clips with their features, in memory or not."""


def build_lazy_feature_set(
    shards: Sequence[Features], rows: Sequence[Sequence[int]], clips: list[Clip], model: str
) -> LazyFeatureSet:
    """The set of `clips` that are the `rows` of every shard, shard by shard; DataError where shapes differ."""
    shapes = [[tuple(tensor.shape[1:]) for tensor in shard.tensors().values()] for shard in shards]
    different = next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None)
    if different is not None:
        first_clip = sum(len(shard_rows) for shard_rows in rows[:different])
        raise DataError(
            f"{clips[first_clip].video}: features of another size than {clips[0].video}'s; clips of one length train "
            "together. Split and extract again with one duration"
        )
    locations = [(number, row) for number, shard_rows in enumerate(rows) for row in shard_rows]
    return LazyFeatureSet(list(shards), torch.tensor(locations, dtype=torch.int64), clips, model)
