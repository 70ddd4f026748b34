"""Rendering of scenes to frames, audio, captions and event times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmaudio.synthetic.audio_synthesis import NOISE_FLOOR, synthesize_hum, synthesize_strike
from mmaudio.synthetic.canvas import draw_frames
from mmaudio.synthetic.scenes import Scene


@dataclass(frozen=True)
class RenderedScene:
    """Frames, audio, caption and events of a scene."""

    frames: npt.NDArray[np.uint8]
    """(T, size, size, 3) RGB; frame i is the scene at i / fps."""
    waveform: npt.NDArray[np.float32]
    """(samples,) mono."""
    caption: str
    event_times: tuple[float, ...]
    """Seconds from the start."""


def render_audio(scene: Scene, sample_rate: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """The scene's audio (samples,) in -1..1."""
    times = np.arange(round(scene.seconds * sample_rate)) / sample_rate
    waveform = NOISE_FLOOR * generator.standard_normal(len(times))
    for actor in scene.actors:
        loudness = actor.motion.loudness(times)
        if loudness is not None:
            waveform += synthesize_hum(actor.kind.timbre, loudness, sample_rate, generator)
        for event in actor.motion.events:
            start = round(event.time * sample_rate)
            if not 0 <= start < len(times):
                continue
            strike = 0.7 * event.amplitude * synthesize_strike(actor.kind.timbre, sample_rate, generator)
            waveform[start : start + len(strike)] += strike[: len(times) - start]
    peak: float = max(1.0, np.abs(waveform).max())
    samples: npt.NDArray[np.float32] = (0.9 / peak * waveform).astype(np.float32)
    return samples


def render_scene(
    scene: Scene, fps: int, image_size: int, sample_rate: int, generator: np.random.Generator
) -> RenderedScene:
    """Frames at `fps` with `image_size` pixels a side, and audio whose noise comes from the generator."""
    times = np.arange(round(scene.seconds * fps)) / fps
    return RenderedScene(
        frames=draw_frames(scene, times, image_size),
        waveform=render_audio(scene, sample_rate, generator),
        caption=scene.caption,
        event_times=tuple(event.time for event in scene.events),
    )
