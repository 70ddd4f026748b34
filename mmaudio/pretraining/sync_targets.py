"""Targets of the sync encoder: pooled mel spectrograms, events per mel frame, and motion per token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from einops import reduce
from torch import Tensor

from mmaudio.features.mel import build_mel
from mmaudio.synthetic.motion import WALL_THICKNESS
from mmaudio.synthetic.scenes import Actor, Scene

NUM_BANDS = 20
MEL_FRAMES_PER_TOKEN = 5
"""Mel frames (16 ms) of a token (80 ms)."""
MEL_FRAME_SECONDS = 0.016
NUM_MOTION_TARGETS = 15
"""Numbers per token of `compute_motion_targets`."""
TIME_SCALE = 0.12
"""Seconds, and sides of the picture, in which nearness falls to 1/e."""
DERIVATIVE_SECONDS = 0.02
"""Seconds before and after a time over which speeds are taken."""
NO_EVENT_SECONDS = 9.0
"""Stands for the time to an event that does not exist."""
Array = npt.NDArray[np.float64]


def pool_mel(audio: Tensor) -> Tensor:
    """Waveforms (n, samples) -> log-mel in 20 bands (n, frames, 20)."""
    pooled: Tensor = reduce(
        build_mel("tiny_16k").to(audio.device)(audio.float()), "n (m p) t -> n t m", "mean", m=NUM_BANDS
    )
    return pooled


def compute_motion_targets(scene: Scene, tokens: int = 100) -> Tensor:
    """Motion at each token, whichever object moves and however the picture is mirrored: (tokens, 15).

    Nearness to the walls, its change, speed, glow and uprightness, summed over the audible objects; and for each mel
    frame how near the last and the next event are in time.
    """
    centres: Array = (np.arange(tokens, dtype=np.float64) + 0.5) * (MEL_FRAMES_PER_TOKEN * MEL_FRAME_SECONDS)
    rows = np.zeros((5, tokens))
    for actor in scene.actors:
        if actor.is_audible:
            rows += _actor_motion(actor, centres)
    times = (np.arange(tokens * MEL_FRAMES_PER_TOKEN) + 0.5) * MEL_FRAME_SECONDS
    event_times = [event.time for event in scene.events] or [-NO_EVENT_SECONDS]
    gaps = times[:, None] - np.asarray(event_times)[None]
    since_last = np.exp(-np.where(gaps >= 0, gaps, NO_EVENT_SECONDS).min(1) / TIME_SCALE)
    until_next = np.exp(-np.where(gaps <= 0, -gaps, NO_EVENT_SECONDS).min(1) / TIME_SCALE)
    per_frame = [nearness.reshape(tokens, MEL_FRAMES_PER_TOKEN) for nearness in (since_last, until_next)]
    return torch.from_numpy(np.concatenate([rows.T, *per_frame], axis=1)).float()


def _actor_motion(actor: Actor, times: Array) -> list[Array]:
    """Nearness to the walls, its change, speed, glow and uprightness of one object, each (tokens,)."""
    shifts = (-DERIVATIVE_SECONDS, 0.0, DERIVATIVE_SECONDS)
    before, pose, after = (actor.motion.pose(times + shift) for shift in shifts)
    nearness = [
        np.exp(-(np.minimum.reduce([p.x, p.y, 1 - p.x, 1 - p.y]) - WALL_THICKNESS - actor.radius) / TIME_SCALE)
        for p in (before, pose, after)
    ]
    seconds = 2 * DERIVATIVE_SECONDS
    speed = np.hypot(after.x - before.x, after.y - before.y) / seconds
    loudness = actor.motion.loudness(times)
    uprightness = 0 * times if loudness is None else loudness
    return [nearness[1], (nearness[2] - nearness[0]) / seconds, speed, pose.glow, uprightness]


def mark_event_frames(event_times: Sequence[Sequence[float]], frames: int) -> Tensor:
    """Event times of n clips -> (n, frames) with 1 at each event's mel frame and 0.5 on both sides of it."""
    marks = torch.zeros(len(event_times), frames)
    for row, times in zip(marks, event_times, strict=True):
        for time in times:
            centre = int(time / MEL_FRAME_SECONDS)
            for offset, height in ((-1, 0.5), (1, 0.5), (0, 1.0)):
                if 0 <= centre + offset < frames:
                    row[centre + offset] = max(height, float(row[centre + offset]))
    return marks
