"""Stage 1: clips of the base's domain, as they come out of real H.264/AAC files, in shards.

Each clip is drawn, written to a video file and read back the way the product reads a user's. Clip i depends on the seed
and i alone, so shards can be made in any order by any number of processes.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Iterator
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
from mmaudio.synthetic.renderer import Rendered, render
from mmaudio.synthetic.scenes import Scene, random_scene

SHARD = 50
"""Clips of a shard."""
SECONDS = 8.2
"""Length of a file: a clip and a little more."""
SAMPLING = ((24, 25, 30), (32_000, 44_100, 48_000), (64, 64, 96))
"""Frames per second, samples per second and sides in pixels that files are made at."""


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
    events: list[list[float]]


def clip_scene(seed: int, index: int) -> tuple[Scene, tuple[int, int, int], np.random.Generator]:
    """The scene of clip `index`, its frames and samples per second and side, and the generator for its noise."""
    generator = np.random.default_rng((seed, index))
    fps, rate, size = (int(generator.choice(options)) for options in SAMPLING)
    return random_scene(BASE, SECONDS, generator), (fps, rate, size), generator


def render_clip(seed: int, index: int) -> tuple[Rendered, int, int]:
    """Clip `index` as rendered, its frames per second and its samples per second."""
    scene, (fps, rate, size), generator = clip_scene(seed, index)
    return render(scene, fps, size, rate, generator), fps, rate


def write_clip(path: Path, seed: int, index: int) -> Rendered:
    """Write clip `index` to a video file."""
    rendered, fps, rate = render_clip(seed, index)
    write_video(path, rendered.frames, fps, rendered.waveform, rate, crf=18 + index % 8)
    return rendered


def make_shard(job: tuple[Path, int, int]) -> Path:
    """Make the shard `number` of the seed in the folder (folder, seed, number), unless it is there."""
    folder, seed, number = job
    path = shard_path(folder, number)
    if path.exists():
        return path
    torch.set_num_threads(1)
    rows: dict[str, list[Tensor]] = {"frames": [], "stills": [], "audio": []}
    captions, events = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(number * SHARD, (number + 1) * SHARD):
            video = Path(scratch) / f"{index}.mp4"
            rendered = write_clip(video, seed, index)
            for name, value in read_clip(video)._asdict().items():
                rows[name].append(value)
            captions.append(rendered.caption)
            events.append(list(rendered.events))
    part = path.with_suffix(".part")
    tensors = {name: torch.stack(values) for name, values in rows.items()}
    save_file(tensors, part, {"captions": json.dumps(captions), "events": json.dumps(events)})
    part.replace(path)
    return path


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"clips_{number:03d}.safetensors"


def make_shards(folder: Path, seed: int, count: int, processes: int) -> Iterator[Path]:
    """Make shards 0 .. count - 1, those that are missing, and yield each path as it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, seed, number) for number in range(count)]
    if processes == 1:
        yield from map(make_shard, jobs)
        return
    context: Any = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        yield from pool.imap(make_shard, jobs)


def load_shard(folder: Path, number: int) -> Shard:
    """A shard, mapped from its file."""
    with safe_open(shard_path(folder, number), framework="pt") as file:
        meta = file.metadata()
        frames, stills, audio = (file.get_tensor(name) for name in ("frames", "stills", "audio"))
        return Shard(frames, stills, audio, json.loads(meta["captions"]), json.loads(meta["events"]))
