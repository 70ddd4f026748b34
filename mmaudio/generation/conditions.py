"""Visual conditions of a generation: the features of every window of a video, of a still, or the learned empty ones.

    features = encode_features(VisualInput(video), grid, encoders, store, progress)
    clip_f, sync_f = features.get(window, network)

Legend: V CLIP tokens, S sync tokens, E image width, D sync width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mmaudio.errors import DataError, MMAudioError
from mmaudio.features.encoders import Encoders
from mmaudio.features.video_features import PREFETCH_WINDOWS, encode_shared_clip_frames
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.windows import WindowGrid
from mmaudio.media.frame_windows import read_frame_windows
from mmaudio.media.picture import read_picture
from mmaudio.media.streams import StreamChoice
from mmaudio.media.video import probe
from mmaudio.model.networks import MMAudio
from mmaudio.utils.prefetch import prefetch

T_ = TypeVar("T_")
Progress = Callable[[Sequence[T_], str], Iterable[T_]]
"""progress(items, label) yields the items."""


@dataclass(frozen=True)
class VisualInput:
    """What is seen: a video from `start` seconds on, a still, or nothing."""

    video: Path | None = None
    start: float = 0.0
    image: Path | None = None
    streams: StreamChoice = field(default_factory=StreamChoice)
    """What of the video is used."""
    mask_away_clip: bool = False
    """Take the timing from the video, and not what is in it: the learned empty CLIP features."""


@dataclass(frozen=True)
class WindowFeatures:
    """CLIP and sync features by window."""

    store: PartStore
    names: tuple[str, ...] = ()
    """The parts of the store that hold them, of a video."""
    image_f: Tensor | None = None  # (1, 1, E)
    """Of a still: its frame stands for all, and nothing moves, as in the public reference."""
    mask_away_clip: bool = False

    def get(self, window: int, network: MMAudio) -> tuple[Tensor, Tensor]:
        """CLIP and sync features of a window, (1, V, E) and (1, S, D): the learned empty ones where there are none."""
        clip_f, sync_f = network.empty_clip(1), network.empty_sync(1)
        if self.image_f is not None:
            clip_f = self.image_f.expand(1, network.lengths.clip_tokens, -1)
        if self.names:
            features = self._read(self.names[window])
            clip_f = clip_f if self.mask_away_clip else features["clip_f"]
            sync_f = features["sync_f"]
        return clip_f, sync_f

    def _read(self, name: str) -> dict[str, Tensor]:
        try:
            return self.store.get(name)
        except (KeyError, OSError, MMAudioError) as error:
            raise DataError(
                f"{self.store.folder}: features of the video in it are gone or damaged; run the command again after "
                "`mmaudio-lora conditions --remove`"
            ) from error


def encode_features(
    visual: VisualInput, grid: WindowGrid, encoders: Encoders, store: PartStore, progress: Progress[int]
) -> WindowFeatures:
    """Encode the windows that are not in `store` yet. DataError where a video or a picture cannot be read."""
    if visual.image is not None:
        return WindowFeatures(store, image_f=encoders.encode_picture(read_picture(visual.image))[None])
    if visual.video is None:
        return WindowFeatures(store)
    encode_windows(visual, grid, encoders, store, progress)
    return WindowFeatures(store, window_names(visual, grid), mask_away_clip=visual.mask_away_clip)


def window_names(visual: VisualInput, grid: WindowGrid) -> tuple[str, ...]:
    """The parts that hold a video's windows: by their beginning and duration in the video, and its picture's number."""
    track = visual.streams.video_track
    prefix = "" if track is None else f"track{track}_"
    return tuple(f"{prefix}{visual.start + time:.6f}+{grid.window_seconds:.6f}" for time in grid.start_times)


def encode_windows(
    visual: VisualInput, grid: WindowGrid, encoders: Encoders, store: PartStore, progress: Progress[int]
) -> None:
    """Encode a video's windows into the parts of `store`, in one decoding pass."""
    assert visual.video is not None
    names = window_names(visual, grid)
    missing = [index for index, name in enumerate(names) if name not in store]
    if not missing:
        return
    starts = [visual.start + grid.start_times[index] for index in missing]
    grids = encoders.frame_grids(grid.window_seconds)
    windows = prefetch(read_frame_windows(probe(visual.video, visual.streams), starts, grids), PREFETCH_WINDOWS)
    cache: dict[float, Tensor] = {}
    for index, window in zip(progress(missing, "conditions, by window"), windows, strict=True):
        clip_f = encode_shared_clip_frames([window], encoders, cache)
        sync_f = encoders.encode_sync_clips([torch.stack(window.frames[1])])
        store.put(names[index], {"clip_f": clip_f, "sync_f": sync_f})
