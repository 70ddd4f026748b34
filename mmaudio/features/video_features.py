"""Features of one video's clips, from one decoding pass over its frames and its audio.

Decoding and resizing run ahead in threads while the encoders work; the number of windows in memory is bounded.

Legend: V CLIP frames, T frames at 25 fps, E image width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.data.clips import Clip
from mmaudio.features.encoders import Encoders
from mmaudio.media.audio_windows import read_audio_windows
from mmaudio.media.frame_windows import FrameGrid, FrameWindow, read_frame_windows
from mmaudio.media.video import VideoInfo, probe
from mmaudio.model.spec import CodecSpec, ModelSpec, compute_lengths
from mmaudio.utils.prefetch import prefetch

PREFETCH_WINDOWS = PREFETCH_BATCHES = 2
"""Windows, or batches of them, that are decoded while others are being encoded."""
GPU_WINDOWS = 4
"""Windows that are encoded together on a GPU; one on a CPU."""
CAPTION_BATCH = 16
"""Captions that are encoded at once."""
WriteRow = Callable[[str, int, Tensor], None]
"""write_row(tensor's name, clip's index, row)."""
ClipInputs = tuple[FrameWindow, Tensor]
"""A window's frames and its waveform (samples,)."""


def encode_clips(path: Path, clips: Sequence[Clip], encoders: Encoders, write_row: WriteRow) -> None:
    """Encode one video's `clips` (ascending starts, one duration) and pass all their features to `write_row`.

    Raises DataError where the video cannot be read or is too short.
    """
    encoder = ClipBatchEncoder(encoders)
    for batch in prefetch(read_batches(path, clips, encoders), PREFETCH_BATCHES):
        encoder.write(encoder.encode(batch), write_row)
    encode_captions(clips, encoders, write_row)


def read_batches(
    path: Path, clips: Sequence[Clip], encoders: Encoders, workers: int | None = None
) -> Iterator[list[ClipInputs]]:
    """Read one video's `clips` in the batches that are encoded together; `workers` as in `read_frame_windows`.

    Raises DataError where the video cannot be read or is too short.
    """
    seconds, starts, gains_db = clips[0].seconds, [clip.start for clip in clips], [clip.gain_db for clip in clips]
    info, grids = probe(path, clips[0].streams), encoders.frame_grids(seconds)
    inputs = read_clip_inputs(info, starts, seconds, encoders.spec.codec, grids, gains_db, workers)
    while batch := list(islice(inputs, GPU_WINDOWS if encoders.device.type == "cuda" else 1)):
        yield batch


class ClipBatchEncoder:
    """Encoder of one video's consecutive batches: a frame that several windows show goes through CLIP once."""

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders
        self._frame_cache: dict[float, Tensor] = {}
        self._num_written = 0

    def encode(self, batch: Sequence[ClipInputs]) -> dict[str, Tensor]:
        """The features of the next windows by name, a row for each; those of the captions are absent."""
        windows = [window for window, _ in batch]
        features = {
            "clip_features": encode_shared_clip_frames(windows, self._encoders, self._frame_cache),
            "sync_features": self._encoders.encode_sync_clips([torch.stack(window.frames[1]) for window in windows]),
        }
        posterior = self._encoders.encode_audio(torch.stack([waveform for _, waveform in batch]))
        return features | {"mean": posterior.mean, "std": posterior.std}

    def write(self, features: dict[str, Tensor], write_row: WriteRow) -> None:
        """Pass the rows of a batch to `write_row`, in the order in which the batches were encoded."""
        for name, rows in features.items():
            for index, row in enumerate(rows, self._num_written):
                write_row(name, index, row)
        self._num_written += len(features["mean"])


def encode_captions(clips: Sequence[Clip], encoders: Encoders, write_row: WriteRow) -> None:
    """Encode the captions of `clips` and pass their text features to `write_row`; equal captions are encoded once."""
    indices: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        indices.setdefault(clip.caption, []).append(index)
    captions = list(indices)
    for start in range(0, len(captions), CAPTION_BATCH):
        batch = captions[start : start + CAPTION_BATCH]
        for caption, row in zip(batch, encoders.encode_texts(batch), strict=True):
            for index in indices[caption]:
                write_row("text_features", index, row)


def feature_shapes(model: ModelSpec, seconds: float) -> dict[str, tuple[int, ...]]:
    """Shape of one clip's row of every tensor."""
    lengths, network = compute_lengths(model.codec, seconds), model.network
    return {
        "mean": (lengths.latent_tokens, network.latent_dim),
        "std": (lengths.latent_tokens, network.latent_dim),
        "clip_features": (lengths.clip_tokens, network.clip_dim),
        "sync_features": (lengths.sync_tokens, network.sync_dim),
        "text_features": (network.text_tokens, network.text_dim),
    }


def read_clip_inputs(
    info: VideoInfo,
    starts: Sequence[float],
    seconds: float,
    codec: CodecSpec,
    grids: Sequence[FrameGrid],
    gains_db: Sequence[float | None] = (),
    workers: int | None = None,
) -> Iterator[ClipInputs]:
    """Read frames and waveform (samples,) of the windows that begin at `starts`, one after the other.

    `gains_db` is that of `read_audio_windows`, `workers` that of `read_frame_windows`. Raises DataError as these do.
    """
    samples = compute_lengths(codec, seconds).audio_samples
    waveforms = read_audio_windows(info, starts, codec.sample_rate, samples, gains_db=gains_db)
    for waveform, window in zip(waveforms, read_frame_windows(info, starts, grids, workers), strict=True):
        yield window, waveform


def encode_shared_clip_frames(windows: Sequence[FrameWindow], encoders: Encoders, cache: dict[float, Tensor]) -> Tensor:
    """CLIP features of the windows' frames (windows, V, E); frames of earlier windows come from `cache`, by time."""
    frames = {
        time: frame
        for window in windows
        for time, frame in zip(window.presentation_times[0], window.frames[0], strict=True)
    }
    new_times = [time for time in frames if time not in cache]
    for time in [time for time in cache if time < windows[0].start]:
        del cache[time]
    if new_times:
        features = encoders.encode_clip_frames(torch.stack([frames[time] for time in new_times]))
        cache.update(zip(new_times, features, strict=True))
    return torch.stack([torch.stack([cache[time] for time in window.presentation_times[0]]) for window in windows])
