"""Extraction with a pause in place of the encoders, a GPU's stand-in: how fast the readers are, and how busy it is.

python -m benchmarks.whole_job --videos 8 --minutes 1 --encoder_ms 50
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from mmaudio.data.clips import DEFAULT_STRIDE, Clip
from mmaudio.features.encoders import ENCODER_COMPONENTS, Encoders
from mmaudio.features.extraction_plan import Planner
from mmaudio.features.frame_resize import resize_frames
from mmaudio.features.mel import build_mel
from mmaudio.features.shard_jobs import share_cores, write_shards
from mmaudio.features.synchformer import Synchformer
from mmaudio.features.vae import Posterior
from mmaudio.features.video_features import feature_shapes
from mmaudio.media.frame_windows import FrameGrid
from mmaudio.model.spec import CLIP_FPS, CLIP_SECONDS, SYNC_FPS, compute_lengths, model_spec
from mmaudio.utils.locks import FileLocks
from mmaudio.utils.progress import progress


@dataclass(frozen=True)
class PausingEncoders(Encoders):
    """Encoders that resize the frames as a model does, and give zeros after a pause."""

    pause: float = 0.0
    """Seconds for each window."""
    pauses: list[float] = field(default_factory=list)
    """The seconds of every batch so far."""

    @cached_property
    def synchformer(self) -> Synchformer:
        """The model without values, which resizes."""
        with torch.device("meta"):
            return Synchformer(self.spec.sync)

    def frame_grids(self, seconds: float) -> tuple[FrameGrid, FrameGrid]:
        """As those of the model."""
        lengths, side = compute_lengths(self.spec.codec, seconds), self.spec.clip.image_size
        return (
            FrameGrid(CLIP_FPS, lengths.clip_tokens, partial(resize_frames, size=(side, side))),
            FrameGrid(SYNC_FPS, lengths.sync_frames, self.synchformer.resize),
        )

    def encode_clip_frames(self, frames: Tensor) -> Tensor:
        """Zeros (V, E)."""
        return torch.zeros(len(frames), self.spec.clip.image_dim)

    def encode_sync_clips(self, clips: Sequence[Tensor]) -> Tensor:
        """Zeros (B, S, D) after the pause of these windows."""
        start = time.monotonic()
        time.sleep(self.pause * len(clips))
        self.pauses.append(time.monotonic() - start)
        return torch.zeros(len(clips), *feature_shapes(self.spec, CLIP_SECONDS)["sync_features"])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Zeros (B, L, W)."""
        return torch.zeros(len(texts), *feature_shapes(self.spec, CLIP_SECONDS)["text_features"])

    def encode_audio(self, waveforms: Tensor) -> Posterior:
        """Zeros (B, N, C)."""
        shape = feature_shapes(self.spec, CLIP_SECONDS)["mean"]
        return Posterior(torch.zeros(len(waveforms), *shape), torch.zeros(len(waveforms), *shape))


def list_windows(videos: Path, seconds: float) -> list[list[Clip]]:
    """The clips of every video, each `seconds` long, as splitting would make them."""
    starts = [DEFAULT_STRIDE * number for number in range(int((seconds - CLIP_SECONDS) // DEFAULT_STRIDE) + 1)]
    return [
        [Clip(f"{path.stem}_{at}", path.name, at, at + CLIP_SECONDS, "", "train", -3.0, -20.0, 0.0) for at in starts]
        for path in sorted(videos.glob("*.mp4"))
    ]


def measure_readers(videos: Path, seconds: float, model: str, milliseconds: float, out: Path) -> str:
    """Extract the features of `videos`, each `seconds` long, with a pause for every window; what came of it."""
    spec, device = model_spec(model), torch.device("cuda")  # read for a GPU; none is used
    encoders = PausingEncoders(spec, device, build_mel(spec.codec.name), pause=milliseconds / 1000)
    planner = Planner(videos, out, model, dict.fromkeys(ENCODER_COMPONENTS, "a pause"))
    by_video = list_windows(videos, seconds)
    plans = [planner.plan_shard(clips[0].video, clips) for clips in by_video]
    for plan in plans:
        plan.shard.unlink(missing_ok=True)
    encoders.frame_grids(CLIP_SECONDS)  # builds and imports, which loading the models does before videos are read
    start, cpu_start = time.monotonic(), time.process_time()
    with FileLocks(out) as locks:
        for _ in progress(write_shards(plans, encoders, locks), len(plans), "videos"):
            pass
    elapsed, num_windows = time.monotonic() - start, sum(map(len, by_video))
    busy_cores, readers = (time.process_time() - cpu_start) / elapsed, share_cores(len(plans), device).readers
    return (
        f"{num_windows} windows of {len(plans)} videos in {elapsed:.2f} s: {num_windows / elapsed:.2f} windows/s, "
        f"{milliseconds:g} ms each in place of the encoders, busy {sum(encoders.pauses) / elapsed:.0%} of the time; "
        f"{readers} readers, {busy_cores:.1f} cores busy"
    )
