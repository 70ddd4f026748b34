"""Speed and memory of decoding and preprocessing videos, beside one clip at a time with torchvision.

    python -m benchmarks.features VIDEO                  # decoding and preprocessing; encoders are not run
    python -m benchmarks.features VIDEO --memory         # peak memory of reading all of it
    python -m benchmarks.features VIDEO --precision small_16k     # bf16 against float32, random weights
    python -m benchmarks.features --encoders small_16k --device cuda         # CLIP and Synchformer alone

Sizes are those of the released encoders. A video of more than 60 s is also read at a stride of 4 s, beside its clips
one at a time.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.baseline_features import read_plain_clip
from benchmarks.encoders import build_visual_encoders, compare_precision, time_encoders
from benchmarks.timing import median_seconds
from mmaudio import cli
from mmaudio.data.shard_writer import ShardWriter
from mmaudio.errors import ConfigError
from mmaudio.features.video_features import PREFETCH_WINDOWS, feature_shapes, read_clip_inputs
from mmaudio.media.audio import read_audio, resample_audio
from mmaudio.media.frame_times import frame_time
from mmaudio.media.frame_windows import FrameGrid
from mmaudio.media.frames import to_rgb
from mmaudio.media.streams import video_stream
from mmaudio.media.video import VideoInfo, decode_frames, open_container, probe
from mmaudio.model.spec import CLIP_FPS, CLIP_SECONDS, MODELS, SYNC_FPS, compute_lengths, model_spec
from mmaudio.utils.prefetch import prefetch

MODEL = model_spec("small_16k")
STRIDE = 4.0
LONG_SECONDS = 60.0
ROUNDS = 3
T = TypeVar("T")


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser("Time decoding and preprocessing, and measure their memory.")
    parser.prog = "python -m benchmarks.features"
    parser.add_argument("video", type=Path, nargs="?", help="a video of at least 8 s with sound")
    parser.add_argument("--memory", action="store_true", help="peak memory of reading all of it")
    parser.add_argument("--precision", choices=list(MODELS), metavar="MODEL", help="bf16 beside float32, on the CPU")
    parser.add_argument(
        "--encoders", choices=list(MODELS), metavar="MODEL", help="CLIP and Synchformer, without a video"
    )
    parser.add_argument("--clips", type=int, default=8, help="with --encoders: clips of 8 s")
    parser.add_argument("--device", default="cpu", help="with --encoders: cpu, cuda or cuda:N")
    return parser


def main(arguments: list[str]) -> int:
    """Run the selected measurements and print them."""
    args = build_parser().parse_args(arguments)
    cli.check_at_least(args, clips=1)
    if args.encoders:
        time_encoders(args.encoders, args.clips, cli.pick_device(args.device), ROUNDS)
        return 0
    if args.video is None:
        raise ConfigError("which video? python -m benchmarks.features VIDEO")
    info = probe(args.video)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{info.width} x {info.height}, {info.fps:g} fps, {info.codec}; {machine}")
    if args.precision:
        compare_precision(info, args.precision)
    elif args.memory:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{info.duration:.0f} s: peak memory {measure_peak_memory(info.path, Path(folder)):.0f} MB")
    else:
        time_stages(info)
        compare_one_clip(info)
        if info.duration > LONG_SECONDS:
            compare_one_minute(info)
    return 0


def frame_grids() -> tuple[FrameGrid, FrameGrid]:
    """The frames of a window at the released sizes; the encoders themselves are not allocated."""
    with torch.device("meta"):
        clip_encoder, sync_encoder = build_visual_encoders(MODEL)
    size = compute_lengths(MODEL.codec)
    return (
        FrameGrid(CLIP_FPS, size.clip_tokens, clip_encoder.resize),
        FrameGrid(SYNC_FPS, size.sync_frames, sync_encoder.resize),
    )


def read_clips(info: VideoInfo, starts: Sequence[float]) -> int:
    """Read the windows at `starts` in one pass, as extraction does, and return their number."""
    inputs = read_clip_inputs(info, starts, CLIP_SECONDS, MODEL.codec, frame_grids())
    return sum(1 for _ in prefetch(inputs, PREFETCH_WINDOWS))


class CpuClock:
    """Processor time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, function: Callable[[], T]) -> T:
        """Call `function` and add its processor time to the stage's."""
        start = time.process_time()
        result = function()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - start
        return result


def time_stages(info: VideoInfo) -> None:
    """Print the processor time of each stage for 8 s, and its share."""
    clock = CpuClock()
    still_grid, sync_grid = frame_grids()
    with open_container(info.path) as container:
        frames = islice(decode_frames(container, video_stream(container, info.path)), round(CLIP_SECONDS * info.fps))
        num_stills = 0
        while (frame := clock.run("decode", lambda: next(frames, None))) is not None:
            rgb = clock.run("to RGB", partial(to_rgb, frame))
            if frame_time(frame) - info.start_time >= num_stills / CLIP_FPS - 1e-6:
                clock.run("resize for CLIP", partial(still_grid.transform, rgb[None]))
                num_stills += 1
            clock.run("resize for sync", partial(sync_grid.transform, rgb[None]))
    waveform, native_rate = clock.run("audio", lambda: read_audio(info.path, info))
    waveform = waveform[: int(CLIP_SECONDS * native_rate)]
    clock.run("audio", lambda: resample_audio(waveform, native_rate, MODEL.codec.sample_rate))
    total = sum(clock.seconds.values())
    for stage, seconds in clock.seconds.items():
        print(f"  {stage:16} {seconds:6.3f} s of processor time, {100 * seconds / total:3.0f} %")


def compare_one_clip(info: VideoInfo) -> None:
    """Print the times for 8 s: in one pass, and plainly."""
    seconds = median_seconds(lambda: read_clips(info, [0.0]), ROUNDS)
    plain_seconds = median_seconds(lambda: read_plain_clip(info, 0.0, MODEL), ROUNDS)
    frames = CLIP_SECONDS * info.fps / seconds
    print(
        f"8 s: {seconds:.2f} s ({frames:.0f} frames/s, {1 / seconds:.2f} clips/s); one clip at a time: "
        f"{plain_seconds:.2f} s"
    )


def compare_one_minute(info: VideoInfo) -> None:
    """Print the times for 60 s at a stride of 4 s: in one pass, and clip by clip."""
    starts = window_starts(LONG_SECONDS)
    seconds = median_seconds(lambda: read_clips(info, starts), 1)
    one_by_one = median_seconds(lambda: read_clips(info, [0.0]), ROUNDS) * len(starts)
    plain_seconds = median_seconds(lambda: [read_plain_clip(info, start, MODEL) for start in starts], 1)
    frames, clips = LONG_SECONDS * info.fps / seconds, len(starts) / seconds
    print(
        f"60 s, {len(starts)} clips: {seconds:.2f} s ({frames:.0f} frames/s, {clips:.2f} clips/s); "
        f"{seconds / one_by_one:.2f} of its clips through the same code one at a time ({one_by_one:.2f} s), "
        f"{seconds / plain_seconds:.2f} of them plainly ({plain_seconds:.2f} s)"
    )


def window_starts(duration: float) -> list[float]:
    """Starts of the windows of 8 s at the stride that end within `duration` seconds."""
    return [STRIDE * number for number in range(int((duration - CLIP_SECONDS) / STRIDE) + 1)]


def measure_peak_memory(video: Path, folder: Path) -> float:
    """Peak memory in MB of a process that reads all windows of `video` and writes rows of the released sizes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_read_and_write, (video, folder)))


def _read_and_write(video: Path, folder: Path) -> float:
    info = probe(video)
    starts = window_starts((info.duration or LONG_SECONDS) - 1)
    shapes = feature_shapes(MODEL, CLIP_SECONDS)
    inputs = read_clip_inputs(info, starts, CLIP_SECONDS, MODEL.codec, frame_grids())
    rows = {name: (len(starts), *shape) for name, shape in shapes.items()}
    with ShardWriter(folder / "features.safetensors", {}, rows) as writer:
        for number, _ in enumerate(prefetch(inputs, PREFETCH_WINDOWS)):
            for name, shape in shapes.items():
                writer.write_row(name, number, torch.zeros(shape))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    cli.run(main)
