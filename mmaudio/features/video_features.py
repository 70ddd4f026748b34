"""The features of one video's clips, from one pass over its picture and its sound, row by row.

Decoding and resizing run ahead in threads while the encoders work: a bounded number of windows is on the way.

Legend: V CLIP frames, T frames at 25 fps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.data.clips import Clip
from mmaudio.features.encoders import Encoders
from mmaudio.media.audio_windows import read_sounds
from mmaudio.media.frame_windows import Grid, Window, read_windows
from mmaudio.media.video import VideoInfo, probe
from mmaudio.model.spec import CodecSpec, ModelSpec, lengths
from mmaudio.utils.prefetch import prefetched

AHEAD = 2
"""Windows that are decoded while others are being encoded."""
GPU_WINDOWS = 4
"""Windows that are encoded together on a GPU, to fill it; on a CPU one."""
CAPTIONS = 16
"""Captions that are encoded at once."""
Put = Callable[[str, int, Tensor], None]
"""Takes the name of a tensor, the number of a clip and its row."""
Material = tuple[Window, Tensor]
"""What is seen and what is heard in a window."""


def encode_clips(path: Path, clips: Sequence[Clip], encoders: Encoders, put: Put) -> None:
    """Hand all features of one video's `clips` (ascending starts, one duration) to `put`.

    Raises DataError where the video cannot give them.
    """
    seconds = clips[0].seconds
    starts = [clip.start for clip in clips]
    windows = read_material(probe(path, clips[0].track), starts, seconds, encoders.spec.codec, encoders.grids(seconds))
    ahead = prefetched(windows, AHEAD)
    known: dict[float, Tensor] = {}
    done = 0
    while group := list(islice(ahead, GPU_WINDOWS if encoders.device.type == "cuda" else 1)):
        seen = [window for window, _ in group]
        rows = {
            "clip_features": _stills(seen, encoders, known),
            "sync_features": encoders.motions([torch.stack(window.frames[1]) for window in seen]),
        }
        posterior = encoders.sound(torch.stack([sound for _, sound in group]))
        rows |= {"mean": posterior.mean, "std": posterior.std}
        for name, values in rows.items():
            for number, row in enumerate(values, done):
                put(name, number, row)
        done += len(group)
    encode_captions(clips, encoders, put)


def encode_captions(clips: Sequence[Clip], encoders: Encoders, put: Put) -> None:
    """Hand the text features of all `clips` to `put`; equal captions are encoded once."""
    places: dict[str, list[int]] = {}
    for number, clip in enumerate(clips):
        places.setdefault(clip.caption, []).append(number)
    captions = list(places)
    for first in range(0, len(captions), CAPTIONS):
        part = captions[first : first + CAPTIONS]
        for caption, row in zip(part, encoders.texts(part), strict=True):
            for number in places[caption]:
                put("text_features", number, row)


def row_shapes(model: ModelSpec, seconds: float) -> dict[str, tuple[int, ...]]:
    """Shape of one clip's row of every tensor."""
    size, network = lengths(model.codec, seconds), model.network
    return {
        "mean": (size.latent, network.latent_dim),
        "std": (size.latent, network.latent_dim),
        "clip_features": (size.clip, network.clip_dim),
        "sync_features": (size.sync, network.sync_dim),
        "text_features": (network.text_tokens, network.text_dim),
    }


def read_material(
    info: VideoInfo, starts: Sequence[float], seconds: float, codec: CodecSpec, grids: Sequence[Grid]
) -> Iterator[Material]:
    """Frames and sound (samples,) of the windows that begin at `starts`, one after the other.

    DataError as `read_windows` and `read_sounds` raise it.
    """
    sounds = read_sounds(info, starts, codec.rate, lengths(codec, seconds).samples)
    for sound, window in zip(sounds, read_windows(info, starts, grids), strict=True):
        yield window, sound


def _stills(windows: Sequence[Window], encoders: Encoders, known: dict[float, Tensor]) -> Tensor:
    """CLIP features of the windows' frames (windows, V, image width); those that earlier windows shared are `known`."""
    shown = {time: frame for window in windows for time, frame in zip(window.times[0], window.frames[0], strict=True)}
    new = [time for time in shown if time not in known]
    for past in [time for time in known if time < windows[0].start]:
        del known[past]
    if new:
        known.update(zip(new, encoders.frames(torch.stack([shown[time] for time in new])), strict=True))
    return torch.stack([torch.stack([known[time] for time in window.times[0]]) for window in windows])
