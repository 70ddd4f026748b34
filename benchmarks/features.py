"""How fast a video becomes what the encoders take, part by part, beside one clip at a time with torchvision.

    python -m benchmarks.features VIDEO                  # decoding and preprocessing; encoders are not run
    python -m benchmarks.features VIDEO --memory         # peak memory of reading all of it
    python -m benchmarks.features VIDEO --precision small_16k     # bf16 against float32, random weights
    python -m benchmarks.features --encoders small_16k --device cuda         # CLIP and Synchformer alone

The released encoders' sizes. A video of more than 60 s is also read at a stride of 4 s beside its clips one at a time.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.generation import machine
from mmaudio import cli
from mmaudio.data.shard_writer import ShardWriter
from mmaudio.errors import ConfigError, DataError
from mmaudio.features import clip, synchformer
from mmaudio.features.clip import build_clip
from mmaudio.features.encoders import Encoders
from mmaudio.features.mel import build_mel
from mmaudio.features.synchformer import build_synchformer, segments
from mmaudio.features.video_features import AHEAD, read_material, row_shapes
from mmaudio.generation.sampler import fast_dtype
from mmaudio.media.audio import read_audio, resample_audio
from mmaudio.media.frame_windows import Grid
from mmaudio.media.frames import to_rgb
from mmaudio.media.video import VideoInfo, decoded, frame_time, opened, picture_stream, probe
from mmaudio.model import cost_model as planning
from mmaudio.model.spec import CLIP_FPS, MODELS, SECONDS, SYNC_FPS, lengths, model_spec
from mmaudio.utils.matmul_speed import matmul_speed
from mmaudio.utils.prefetch import prefetched

MODEL = model_spec("small_16k")
STRIDE = 4.0
ROUNDS = 3
PLAIN_CLIP = v2.Compose(
    [
        v2.Resize((384, 384), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(clip.MEAN, clip.STD),
    ]
)
PLAIN_SYNC = v2.Compose(
    [
        v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.CenterCrop(224),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


def parser() -> cli.Parser:
    """The command line."""
    made = cli.Parser("Time decoding and preprocessing, and measure their memory.")
    made.prog = "python -m benchmarks.features"
    made.add_argument("video", type=Path, nargs="?", help="a video of at least 8 s with sound")
    made.add_argument("--memory", action="store_true", help="peak memory of reading all of it")
    made.add_argument("--precision", choices=list(MODELS), metavar="MODEL", help="bf16 beside float32, on the CPU")
    made.add_argument("--encoders", choices=list(MODELS), metavar="MODEL", help="CLIP and Synchformer, without a video")
    made.add_argument("--clips", type=int, default=8, help="with --encoders: clips of 8 s")
    made.add_argument("--device", default="cpu", help="with --encoders: cpu, cuda or cuda:N")
    return made


def main(arguments: list[str]) -> int:
    """Measure what is asked for and print it."""
    args = parser().parse_args(arguments)
    cli.at_least(args, clips=1)
    if args.encoders:
        encoders_alone(args.encoders, args.clips, cli.pick_device(args.device))
        return 0
    if args.video is None:
        raise ConfigError("which video? python -m benchmarks.features VIDEO")
    info = probe(args.video)
    print(f"{info.width} x {info.height}, {info.fps:g} fps, {info.codec}; {platform.machine()}, {threads()} threads")
    if args.precision:
        compare_precision(info, args.precision)
    elif args.memory:
        with tempfile.TemporaryDirectory() as place:
            print(f"{info.duration:.0f} s: peak memory {peak_memory(info.path, Path(place)):.0f} MB")
    else:
        parts(info)
        one_clip(info)
        if info.duration > 60.0:
            one_minute(info)
    return 0


def threads() -> int:
    """Threads that torch takes."""
    return torch.get_num_threads()


def grids() -> tuple[Grid, Grid]:
    """What a window takes at the released sizes, without the encoders themselves."""
    with torch.device("meta"):
        seeing, moving = build_clip(MODEL.clip.name), build_synchformer(MODEL.sync.name)
    size = lengths(MODEL.codec)
    return Grid(CLIP_FPS, size.clip, seeing.resize), Grid(SYNC_FPS, size.sync_frames, moving.resize)


def ours(info: VideoInfo, starts: Sequence[float]) -> int:
    """Read the windows at `starts` in one pass, as extraction does; how many."""
    return sum(1 for _ in prefetched(read_material(info, starts, SECONDS, MODEL.codec, grids()), AHEAD))


def plain(info: VideoInfo, start: float) -> tuple[Tensor, Tensor, Tensor]:
    """One clip by itself: seek, decode, torchvision's transforms for both rates, the sound of the clip."""
    stills: list[Tensor] = []
    motion: list[Tensor] = []
    size = lengths(MODEL.codec)
    with opened(info.path) as container:
        stream = picture_stream(container, info.path)
        container.seek(int((start + info.origin) / stream.time_base), stream=stream)
        for frame in decoded(container, stream):
            time_of = frame_time(frame) - info.origin - start
            if time_of < -1e-6:
                continue
            rgb = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            stills += [rgb] * (len(stills) < size.clip and time_of * CLIP_FPS >= len(stills) - 1e-5)
            motion += [rgb] * (len(motion) < size.sync_frames and time_of * SYNC_FPS >= len(motion) - 1e-5)
            if len(stills) == size.clip and len(motion) == size.sync_frames:
                break
    waveform, rate = read_audio(info.path, info)
    sound = resample_audio(waveform[int(start * rate) : int((start + SECONDS) * rate)], rate, MODEL.codec.rate)
    return PLAIN_CLIP(torch.stack(stills)), PLAIN_SYNC(torch.stack(motion)), sound


def median(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Seconds that `run` takes, the median."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def parts(info: VideoInfo) -> None:
    """Processor time of each part of 8 s, and its share."""
    spent: dict[str, float] = dict.fromkeys(("decode", "to RGB", "resize for CLIP", "resize for sync", "sound"), 0.0)

    def clocked(name: str, run: Callable[[], Any]) -> Any:
        start = time.process_time()
        made = run()
        spent[name] += time.process_time() - start
        return made

    still, moving = grids()
    with opened(info.path) as container:
        frames = islice(decoded(container, picture_stream(container, info.path)), round(SECONDS * info.fps))
        number = 0
        while (frame := clocked("decode", lambda: next(frames, None))) is not None:
            rgb = clocked("to RGB", partial(to_rgb, frame))
            if frame_time(frame) - info.origin >= number / CLIP_FPS - 1e-6:
                clocked("resize for CLIP", partial(still.transform, rgb[None]))
                number += 1
            clocked("resize for sync", partial(moving.transform, rgb[None]))
    waveform, rate = clocked("sound", lambda: read_audio(info.path, info))
    clocked("sound", lambda: resample_audio(waveform[: int(SECONDS * rate)], rate, MODEL.codec.rate))
    total = sum(spent.values())
    for name, seconds in spent.items():
        print(f"  {name:16} {seconds:6.3f} s of processor time, {100 * seconds / total:3.0f} %")


def one_clip(info: VideoInfo) -> None:
    """8 s: in one pass, and plainly."""
    here, there = median(lambda: ours(info, [0.0])), median(lambda: plain(info, 0.0))
    frames = SECONDS * info.fps / here
    print(f"8 s: {here:.2f} s ({frames:.0f} frames/s, {1 / here:.2f} clips/s); one clip at a time: {there:.2f} s")


def one_minute(info: VideoInfo) -> None:
    """60 s at a stride of 4 s: in one pass, and clip by clip."""
    starts = [STRIDE * number for number in range(int((60.0 - SECONDS) / STRIDE) + 1)]
    here = median(lambda: ours(info, starts), 1)
    one = median(lambda: ours(info, [0.0]))
    there = median(lambda: [plain(info, start) for start in starts], 1)
    print(
        f"60 s, {len(starts)} clips: {here:.2f} s ({60 * info.fps / here:.0f} frames/s, {len(starts) / here:.2f} "
        f"clips/s); {here / (one * len(starts)):.2f} of its clips through the same code one at a time "
        f"({one * len(starts):.2f} s), {here / there:.2f} of them plainly ({there:.2f} s)"
    )


def peak_memory(video: Path, place: Path) -> float:
    """Largest memory in MB of a process that reads all windows of `video` and writes rows of the released sizes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_read_and_write, (video, place)))


def _read_and_write(video: Path, place: Path) -> float:
    info = probe(video)
    size = info.duration or 60.0
    starts = [STRIDE * number for number in range(int((size - SECONDS - 1) / STRIDE) + 1)]
    shapes = row_shapes(MODEL, SECONDS)
    material = read_material(info, starts, SECONDS, MODEL.codec, grids())
    rows = {name: (len(starts), *shape) for name, shape in shapes.items()}
    with ShardWriter(place / "features.safetensors", {}, rows) as writer:
        for number, _ in enumerate(prefetched(material, AHEAD)):
            for name, shape in shapes.items():
                writer.put(name, number, torch.zeros(shape))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def compare_precision(info: VideoInfo, model: str) -> None:
    """Features of 2 s in bfloat16 beside float32: the largest and the mean error, over the values' own size.

    Beside the times, what they are of the matrix-product speed by `planning`'s counts: its `ENCODERS`.
    """
    spec = model_spec(model)
    with torch.random.fork_rng():
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        seeing, moving = build_clip(spec.clip.name).eval(), build_synchformer(spec.sync.name).eval()
    wanted = Grid(CLIP_FPS, 4, seeing.resize), Grid(SYNC_FPS, 40, moving.resize)
    window, _ = next(read_material(info, [0.0], SECONDS, spec.codec, wanted))
    stills, frames = (torch.stack(rows) for rows in window.frames)
    runs: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "CLIP, 4 frames": (
            4 * planning.clip_flops(spec.clip),
            lambda: seeing.encode_frames(clip.normalise(stills)[None]),
        ),
        "Synchformer, 4 segments": (
            4 * planning.sync_flops(spec.sync),
            lambda: moving(synchformer.normalise(segments(frames))[None]),
        ),
    }
    dtypes = (torch.float32, torch.bfloat16)
    speeds = [matmul_speed(torch.device("cpu"), dtype) for dtype in dtypes]
    for name, (flops, run) in runs.items():
        made, spent = [], []
        for dtype in dtypes:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), torch.inference_mode():
                start = time.perf_counter()
                made.append(run().double())
                spent.append(time.perf_counter() - start)
        shares = [flops / seconds / speed for seconds, speed in zip(spent, speeds, strict=True)]
        error = (made[1] - made[0]).abs()
        if not torch.isfinite(error).all():
            raise DataError(f"{name}: values that are not finite in bfloat16")
        scale = made[0].square().mean().sqrt()
        print(
            f"{name}: float32 {spent[0]:.2f} s, bf16 {spent[1]:.2f} s ({shares[0]:.2f} and {shares[1]:.2f} of the "
            f"matrix products' speed); error over the root mean square: mean {error.mean() / scale:.4f}, "
            f"largest {error.max() / scale:.3f}"
        )


def encoders_alone(model: str, clips: int, device: torch.device) -> None:
    """How long the two encoders take for `clips` clips of 8 s as extraction runs them, random weights and pictures.

    Beside the times, what they are of the matrix-product speed by `planning`'s counts.
    """
    spec, dtype = model_spec(model), fast_dtype(device)
    with device:
        seeing, moving = build_clip(spec.clip.name).eval(), build_synchformer(spec.sync.name).eval()
    encoders = Encoders(spec, device, build_mel(spec.codec.name), clip=seeing, sync=moving, dtype=dtype)
    size, speed = lengths(spec.codec), matmul_speed(device, dtype)
    stills = torch.randint(256, (clips * size.clip, 3, spec.clip.size, spec.clip.size), dtype=torch.uint8)
    frames = torch.randint(256, (size.sync_frames, 3, spec.sync.size, spec.sync.size), dtype=torch.uint8)
    print(f"{model}, {clips} clips of 8 s, {str(dtype).removeprefix('torch.')}; {machine(device)}")
    runs: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "CLIP": (size.clip * planning.clip_flops(spec.clip), lambda: encoders.frames(stills)),
        "Synchformer": (
            size.sync_segments * planning.sync_flops(spec.sync),
            lambda: encoders.motions([frames] * clips),
        ),
    }
    for name, (flops, run) in runs.items():
        run()  # the first batches find the size that fits
        seconds = median(run) / clips
        print(f"{name:<12} {seconds:7.3f} s a clip, {flops / seconds / speed:.2f} of the matrix products' speed")


if __name__ == "__main__":
    cli.run(main)
