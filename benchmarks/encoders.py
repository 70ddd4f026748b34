"""Speed of CLIP and Synchformer with random weights, and the error of bfloat16 in their features.

Used by `benchmarks.features --encoders` and `--precision`. Times are compared with the speed of matrix products, by
the operation counts of `mmaudio.model.cost_model`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import CPU, describe_device, median_seconds, time_call
from mmaudio.errors import DataError
from mmaudio.features import clip, synchformer
from mmaudio.features.clip import ClipEncoder, build_clip
from mmaudio.features.encoders import Encoders
from mmaudio.features.mel import build_mel
from mmaudio.features.synchformer import Synchformer, build_synchformer
from mmaudio.features.video_features import read_clip_inputs
from mmaudio.generation.sampler import fast_dtype
from mmaudio.media.frame_windows import FrameGrid
from mmaudio.media.video import VideoInfo
from mmaudio.model import cost_model
from mmaudio.model.spec import CLIP_FPS, CLIP_SECONDS, SYNC_FPS, ModelSpec, compute_lengths, model_spec
from mmaudio.utils.matmul_speed import measure_matmul_speed

PRECISION_STILLS, PRECISION_FRAMES, PRECISION_SEGMENTS = 4, 40, 4
"""CLIP frames, frames at 25 fps and Synchformer segments of the comparison of precisions."""
EncoderCall = tuple[float, Callable[[], Tensor]]
"""Operations of a call, and the call."""


def build_visual_encoders(spec: ModelSpec) -> tuple[ClipEncoder, Synchformer]:
    """CLIP and Synchformer of `spec` with random weights."""
    return build_clip(spec.clip.name).eval(), build_synchformer(spec.sync.name).eval()


def compare_precision(info: VideoInfo, model: str) -> None:
    """Print times and errors of bfloat16 beside float32 for the features of 2 s of a video, on the CPU.

    The errors are the largest and the mean, over the root mean square of the values.
    """
    spec = model_spec(model)
    with torch.random.fork_rng():
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        clip_encoder, sync_encoder = build_visual_encoders(spec)
    grids = (
        FrameGrid(CLIP_FPS, PRECISION_STILLS, clip_encoder.resize),
        FrameGrid(SYNC_FPS, PRECISION_FRAMES, sync_encoder.resize),
    )
    window, _ = next(read_clip_inputs(info, [0.0], CLIP_SECONDS, spec.codec, grids))
    stills, frames = (torch.stack(rows) for rows in window.frames)
    calls: dict[str, EncoderCall] = {
        f"CLIP, {PRECISION_STILLS} frames": (
            PRECISION_STILLS * cost_model.clip_flops(spec.clip),
            lambda: clip_encoder.encode_frames(clip.normalize_frames(stills)[None]),
        ),
        f"Synchformer, {PRECISION_SEGMENTS} segments": (
            PRECISION_SEGMENTS * cost_model.sync_flops(spec.sync),
            lambda: sync_encoder(synchformer.normalize_frames(synchformer.split_segments(frames))[None]),
        ),
    }
    dtypes = (torch.float32, torch.bfloat16)
    speeds = [measure_matmul_speed(CPU, dtype) for dtype in dtypes]
    for name, (flops, encode) in calls.items():
        (full_seconds, full), (half_seconds, half) = (_time_in_dtype(encode, dtype) for dtype in dtypes)
        full_share, half_share = (
            flops / seconds / speed for seconds, speed in zip((full_seconds, half_seconds), speeds, strict=True)
        )
        error, scale = (half - full).abs(), full.square().mean().sqrt()
        if not torch.isfinite(error).all():
            raise DataError(f"{name}: values that are not finite in bfloat16")
        print(
            f"{name}: float32 {full_seconds:.2f} s, bf16 {half_seconds:.2f} s ({full_share:.2f} and "
            f"{half_share:.2f} of the matrix products' speed); error over the root mean square: mean "
            f"{error.mean() / scale:.4f}, largest {error.max() / scale:.3f}"
        )


def _time_in_dtype(encode: Callable[[], Tensor], dtype: torch.dtype) -> tuple[float, Tensor]:
    """Seconds and float64 result of a call under autocast."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), torch.inference_mode():
        return time_call(lambda: encode().double())


def time_encoders(model: str, clips: int, device: torch.device, rounds: int) -> None:
    """Print the encoders' times for `clips` clips of 8 s, as extraction runs them on random frames."""
    spec, dtype = model_spec(model), fast_dtype(device)
    with device:
        clip_encoder, sync_encoder = build_visual_encoders(spec)
    encoders = Encoders(spec, device, build_mel(spec.codec.name), clip=clip_encoder, sync=sync_encoder, dtype=dtype)
    size, matmul_speed = compute_lengths(spec.codec), measure_matmul_speed(device, dtype)
    stills = _random_frames(clips * size.clip_tokens, spec.clip.image_size)
    frames = _random_frames(size.sync_frames, spec.sync.image_size)
    print(f"{model}, {clips} clips of 8 s, {str(dtype).removeprefix('torch.')}; {describe_device(device)}")
    calls: dict[str, EncoderCall] = {
        "CLIP": (
            size.clip_tokens * cost_model.clip_flops(spec.clip),
            lambda: encoders.encode_clip_frames(stills),
        ),
        "Synchformer": (
            size.sync_segments * cost_model.sync_flops(spec.sync),
            lambda: encoders.encode_sync_clips([frames] * clips),
        ),
    }
    for name, (flops, encode) in calls.items():
        encode()  # finds the batch size that fits
        seconds = median_seconds(encode, rounds, device) / clips
        print(f"{name:<12} {seconds:7.3f} s a clip, {flops / seconds / matmul_speed:.2f} of the matrix products' speed")


def _random_frames(count: int, side: int) -> Tensor:
    """Random uint8 frames (count, 3, side, side)."""
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
