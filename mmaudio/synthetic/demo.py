"""Sample videos: scenes of a domain that the base was not trained on, with every kind of object in several of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmaudio.errors import DataError
from mmaudio.media.mux import write_video
from mmaudio.media.video import probe
from mmaudio.synthetic.domains import SAMPLE_DOMAINS
from mmaudio.synthetic.renderer import render_scene
from mmaudio.synthetic.scenes import build_scene, random_actor
from mmaudio.utils.files import atomic_write
from mmaudio.utils.subprocess_worker import end_with_parent, isolated_start

CASTS = ((0,), (1, 5), (2, 3), (4, 0), (3, 5), (1, 2), (0, 2), (4, 3), (1,), (0, 5), (2, 4), (3, 1))
"""Indices of the kinds in video 0, 1, ...; each kind is in several, so a held-out video has none of its own."""
FRAME_RATES = (25, 30, 24)
IMAGE_SIZE = 96
"""Side of a picture in pixels."""
SAMPLE_RATE = 48_000
EVENTS_PER_SECOND = 1.1


@dataclass(frozen=True)
class DemoVideo:
    """One sample video: where it is written, and what determines it."""

    path: Path
    number: int
    seconds: float
    seed: int
    domain: str = "demo"
    """One of SAMPLE_DOMAINS."""


def plan_demo_videos(folder: Path, count: int, seconds: float, seed: int, domain: str = "demo") -> list[DemoVideo]:
    """The videos of a demo folder; the same arguments give the same files."""
    return [
        DemoVideo(folder / f"{domain}_{seed}_{number:02d}.mp4", number, seconds, seed, domain)
        for number in range(count)
    ]


def write_demo_video(video: DemoVideo) -> DemoVideo:
    """Render and write one video, and its caption beside it."""
    generator = np.random.default_rng((video.seed, video.number))
    cast = CASTS[video.number % len(CASTS)]
    events_per_second = EVENTS_PER_SECOND / len(cast) ** 0.5
    domain = SAMPLE_DOMAINS[video.domain]
    actors = [random_actor(domain.kinds[kind], events_per_second, video.seconds, generator) for kind in cast]
    scene = build_scene(domain, actors, video.seconds, generator)
    fps = FRAME_RATES[video.number % len(FRAME_RATES)]
    rendered = render_scene(scene, fps, IMAGE_SIZE, SAMPLE_RATE, generator)
    write_video(video.path, rendered.frames, fps, rendered.waveform, SAMPLE_RATE)
    with atomic_write(video.path.with_suffix(".txt")) as temporary:
        temporary.write_text(rendered.caption + "\n", encoding="utf-8")
    return video


def is_complete(video: DemoVideo) -> bool:
    """Whether the file and its caption exist, with the right duration."""
    if not (video.path.is_file() and video.path.with_suffix(".txt").is_file()):
        return False
    try:
        return abs(probe(video.path).duration - video.seconds) < 0.1
    except DataError:
        return False


def write_demo_videos(videos: list[DemoVideo], processes: int) -> Iterator[DemoVideo]:
    """Write the videos in that many processes and yield each when it is complete."""
    if processes == 1 or len(videos) < 2:
        yield from map(write_demo_video, videos)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(videos)), context, end_with_parent) as pool:
        with isolated_start():
            finished_videos = pool.map(write_demo_video, videos)
        yield from finished_videos
