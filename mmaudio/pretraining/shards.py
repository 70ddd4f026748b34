"""Stage 1: clips of the base's domain, as they come out of real H.264/AAC files, in shards.

Each clip is rendered, written to a video file and read back the way the product reads a user's. Clip i depends on the
seed and i alone, so any number of processes can write shards in any order.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmaudio.media.mux import write_video
from mmaudio.pretraining.clip_tensors import read_clip
from mmaudio.synthetic.domains import BASE
from mmaudio.synthetic.renderer import RenderedScene, render_scene
from mmaudio.synthetic.scenes import Scene, random_scene
from mmaudio.utils.files import atomic_write
from mmaudio.utils.memory import free_memory
from mmaudio.utils.subprocess_worker import end_with_parent, isolated_start

SHARD_SIZE = 50
"""Clips of a shard."""
FILE_SECONDS = 8.2
"""Duration of a file: a clip and a little more."""
FRAME_RATES, SAMPLE_RATES, IMAGE_SIZES = (24, 25, 30), (32_000, 44_100, 48_000), (64, 64, 96)
"""Files have one of each, at random; sizes are sides in pixels."""


@dataclass(frozen=True)
class Shard:
    """Clips of one shard; n of them."""

    frames: Tensor
    """(n, 200, 64, 64, 3) uint8 at 25 fps."""
    stills: Tensor
    """(n, 64, 64, 64, 3) uint8 at 8 fps."""
    audio: Tensor
    """(n, 128000) float16, peak 0.95."""
    captions: list[str]
    event_times: list[list[float]]
    """Seconds from each clip's start."""


@dataclass(frozen=True)
class ClipPlan:
    """The scene of one clip and the format of its file."""

    scene: Scene
    fps: int
    sample_rate: int
    image_size: int
    generator: np.random.Generator
    """Random numbers for the rendering."""


def plan_clip(seed: int, index: int) -> ClipPlan:
    """The scene and the format of clip `index`."""
    generator = np.random.default_rng((seed, index))
    fps, sample_rate, image_size = (
        int(generator.choice(options)) for options in (FRAME_RATES, SAMPLE_RATES, IMAGE_SIZES)
    )
    return ClipPlan(random_scene(BASE, FILE_SECONDS, generator), fps, sample_rate, image_size, generator)


def write_clip(path: Path, seed: int, index: int, crf: int | None = None) -> RenderedScene:
    """Render clip `index` and write it to a video file; without a `crf` its quality depends on the index."""
    plan = plan_clip(seed, index)
    rendered = render_plan(plan)
    quality = 18 + index % 8 if crf is None else crf
    write_video(path, rendered.frames, plan.fps, rendered.waveform, plan.sample_rate, crf=quality)
    return rendered


def render_plan(plan: ClipPlan) -> RenderedScene:
    """Frames and audio of a clip; they use up the plan's random numbers."""
    return render_scene(plan.scene, plan.fps, plan.image_size, plan.sample_rate, plan.generator)


def write_shard(job: tuple[Path, int, int]) -> Path:
    """Write the shard of a job (folder, seed, number), unless it exists."""
    folder, seed, number = job
    path = shard_path(folder, number)
    if path.exists():
        return path
    torch.set_num_threads(1)
    rows: dict[str, list[Tensor]] = {"frames": [], "stills": [], "audio": []}
    captions, event_times = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(number * SHARD_SIZE, (number + 1) * SHARD_SIZE):
            video = Path(scratch) / f"{index}.mp4"
            rendered = write_clip(video, seed, index)
            for name, value in read_clip(video)._asdict().items():
                rows[name].append(value)
            captions.append(rendered.caption)
            event_times.append(list(rendered.event_times))
    tensors = {name: torch.stack(values) for name, values in rows.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {"captions": json.dumps(captions), "events": json.dumps(event_times)})
    return path


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"clips_{number:03d}.safetensors"


def write_shards(folder: Path, seed: int, count: int, processes: int) -> Iterator[Path]:
    """Write shards 0 .. count - 1, those that are missing, and yield each path when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, seed, number) for number in range(count)]
    if processes == 1:
        yield from map(write_shard, jobs)
        return
    context: Any = multiprocessing.get_context("spawn")
    with isolated_start():
        pool = context.Pool(processes, end_with_parent)
    with pool:
        yield from pool.imap(write_shard, jobs)


def load_shard(folder: Path, number: int) -> Shard:
    """A shard, mapped from its file."""
    with safe_open(shard_path(folder, number), framework="pt") as file:
        metadata = file.metadata()
        frames, stills, audio = (file.get_tensor(name) for name in ("frames", "stills", "audio"))
        return Shard(frames, stills, audio, json.loads(metadata["captions"]), json.loads(metadata["events"]))


def concatenate_on_gpu(tensors: Sequence[Tensor], device: torch.device) -> Tensor | None:
    """One tensor of all on a GPU, (n, ...) each -> (sum of n, ...); None where it takes over half its free memory.

    None on a CPU, too, whose tensors stay mapped from their files.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if device.type == "cpu" or size > free_memory(device) // 2:
        return None
    whole = torch.empty((sum(map(len, tensors)), *tensors[0].shape[1:]), dtype=tensors[0].dtype, device=device)
    start = 0
    for tensor in tensors:
        whole[start : start + len(tensor)].copy_(tensor)
        start += len(tensor)
    return whole
