"""Rendering: a scene to frames, sound, caption and event times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmaudio.synthetic import audio_synthesis as sounds
from mmaudio.synthetic.canvas import draw
from mmaudio.synthetic.scenes import Scene


@dataclass(frozen=True)
class Rendered:
    """A scene as it is seen and heard."""

    frames: npt.NDArray[np.uint8]
    """(T, size, size, 3) RGB; frame i is the scene at i / fps."""
    waveform: npt.NDArray[np.float32]
    """(samples,) mono."""
    caption: str
    events: tuple[float, ...]
    """Seconds from the start at which something is struck or switched."""


def sound_of(scene: Scene, rate: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """The scene's sound (samples,) in -1..1 at `rate` samples per second."""
    times = np.arange(round(scene.seconds * rate)) / rate
    waveform = sounds.FLOOR * generator.standard_normal(len(times))
    for actor in scene.actors:
        loudness = actor.motion.loudness(times)
        if loudness is not None:
            waveform += sounds.hum(actor.kind.timbre, loudness, rate, generator)
        for event in actor.motion.events:
            start = round(event.time * rate)
            if not 0 <= start < len(times):
                continue
            strike = 0.7 * event.strength * sounds.struck(actor.kind.timbre, rate, generator)
            waveform[start : start + len(strike)] += strike[: len(times) - start]
    loudest: float = max(1.0, np.abs(waveform).max())
    samples: npt.NDArray[np.float32] = (0.9 / loudest * waveform).astype(np.float32)
    return samples


def render(scene: Scene, fps: int, size: int, rate: int, generator: np.random.Generator) -> Rendered:
    """Frames at `fps`, `size` pixels a side, and sound at `rate`; noise comes from the generator."""
    times = np.arange(round(scene.seconds * fps)) / fps
    return Rendered(
        frames=draw(scene, times, size),
        waveform=sound_of(scene, rate, generator),
        caption=scene.caption,
        events=tuple(event.time for event in scene.events),
    )
