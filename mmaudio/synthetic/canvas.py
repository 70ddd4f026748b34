"""Frames of scenes: anti-aliased shapes from signed distances, all frames of an object at once.

T frames, S pixels a side, P pixels a side of the patch around an object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mmaudio.synthetic.motion import WALL_THICKNESS
from mmaudio.synthetic.scenes import Actor, Scene

Array = npt.NDArray[np.floating[Any]]
FRAMES_PER_CHUNK = 64
"""Frames that are drawn at once."""
Distance = Callable[[Array, Array], Array]
"""Signed distance to a shape's outline at (x, y), in units of its radius, negative inside."""


def _box_distance(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    distance: Array = np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)
    return distance


def _polar_distance(x: Array, y: Array, lobes: int, mean: float, swing: float) -> Array:
    """An outline whose radius swings `lobes` times around a mean."""
    distance: Array = (np.hypot(x, y) - mean - swing * np.cos(lobes * np.arctan2(x, -y))) * np.float32(0.75)
    return distance


def _polygon_distance(x: Array, y: Array, sides: int) -> Array:
    """A regular polygon with a corner at the top."""
    step = 2 * np.pi / sides
    angle = np.mod(np.arctan2(x, -y), step) - step / 2
    distance: Array = np.hypot(x, y) * np.cos(angle) - np.float32(np.cos(step / 2))
    return distance


def _heart_distance(x: Array, y: Array) -> Array:
    lobes = np.hypot(np.abs(x) - 0.42, y + 0.3) - 0.5
    tip = np.maximum((np.abs(x) + y) / 1.42 - 0.62, -y - 0.3)
    distance: Array = np.minimum(lobes, tip)
    return distance


def _lamp_distance(x: Array, y: Array) -> Array:
    distance: Array = np.minimum(np.hypot(x, y + 0.25) - 0.68, _box_distance(x, y - 0.68, 0.3, 0.3))
    return distance


SHAPES: dict[str, Distance] = {
    "ball": lambda x, y: np.hypot(x, y) - 0.92,
    "box": lambda x, y: _box_distance(x, y, 0.82, 0.82),
    "triangle": lambda x, y: _polygon_distance(x, y - 0.2, 3),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.24,
    "diamond": lambda x, y: (np.abs(x) * 1.3 + np.abs(y)) / 1.64 - 0.6,
    "cross": lambda x, y: np.minimum(_box_distance(x, y, 0.95, 0.3), _box_distance(x, y, 0.3, 0.95)),
    "pill": lambda x, y: np.hypot(np.maximum(np.abs(x) - 0.5, 0), y) - 0.48,
    "lamp": _lamp_distance,
    "bar": lambda x, y: _box_distance(x, y, 0.24, 1.0),
    "wheel": lambda x, y: np.minimum(_box_distance(x, y, 0.14, 1.0), np.hypot(x, y) - 0.45),
    "star": lambda x, y: _polar_distance(x, y, 5, 0.72, 0.28),
    "heart": _heart_distance,
    "hexagon": lambda x, y: _polygon_distance(x, y, 6),
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.72 - np.hypot(x - 0.42, y + 0.2)),
    "lantern": lambda x, y: np.minimum(_box_distance(x, y - 0.1, 0.55, 0.7), _box_distance(x, y + 0.8, 0.2, 0.2)),
    "fan": lambda x, y: np.maximum(_polar_distance(x, y, 2, 0.55, 0.45), np.hypot(x, y) - 1.0),
}
"""Every shape of both domains."""


def _draw_actor(canvas: Array, actor: Actor, times: npt.NDArray[np.float64], image_size: int, margin: int) -> None:
    """Draw one object into `canvas` (T, S + 2 margin, S + 2 margin, 3)."""
    pose = actor.motion.pose(times)
    radius = actor.radius * image_size
    patch_radius = int(np.ceil(radius * 1.1)) + 1
    offsets = np.arange(-patch_radius, patch_radius + 1)
    lowest, highest = patch_radius - margin, image_size + margin - patch_radius - 1
    column, row = (
        np.clip(np.round(position * image_size - 0.5).astype(int), lowest, highest) for position in (pose.x, pose.y)
    )
    x = ((column + 0.5 - pose.x * image_size)[:, None, None] + offsets[None, None, :]).astype(np.float32) / radius
    y = ((row + 0.5 - pose.y * image_size)[:, None, None] + offsets[None, :, None]).astype(np.float32) / radius
    x, y = np.broadcast_arrays(x, y)  # (T, P, P)
    if pose.angle.any():
        cos, sin = (f(pose.angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        x, y = cos * x + sin * y, cos * y - sin * x
    depth = -SHAPES[actor.kind.shape](x, y) * np.float32(radius)
    alpha = np.clip(depth + 0.5, 0, 1)[..., None]
    shade = (0.8 + 0.2 * np.clip(depth / (0.3 * radius), 0, 1)) * pose.glow.astype(np.float32)[:, None, None]
    colour = shade[..., None] * np.asarray(actor.kind.colour, np.float32)
    index = (
        np.arange(len(times))[:, None, None],
        (row + margin)[:, None, None] + offsets[None, :, None],
        (column + margin)[:, None, None] + offsets[None, None, :],
    )
    canvas[index] += alpha * (colour - canvas[index])


def draw_frames(scene: Scene, times: npt.NDArray[np.float64], image_size: int) -> npt.NDArray[np.uint8]:
    """The scene's frames at `times` (T,): (T, S, S, 3) uint8 RGB."""
    background = _draw_background(scene, image_size)
    time_chunks = [times[start : start + FRAMES_PER_CHUNK] for start in range(0, len(times), FRAMES_PER_CHUNK)]
    return np.concatenate([_draw_chunk(scene, background, chunk, image_size) for chunk in time_chunks])


def _draw_background(scene: Scene, image_size: int) -> Array:
    """The background and the walls, with a margin of half a side around them: (2 S, 2 S, 3)."""
    margin = image_size // 2
    blend = np.clip(np.linspace(-0.5, 1.5, image_size + 2 * margin, dtype=np.float32), 0, 1)[:, None]
    rows = (1 - blend) * np.asarray(scene.top, np.float32) + blend * np.asarray(scene.bottom, np.float32)
    picture = np.repeat(rows[:, None, :], image_size + 2 * margin, axis=1)
    centre = (np.arange(image_size + 2 * margin) - margin + 0.5) / image_size
    inside = (centre > WALL_THICKNESS) & (centre < 1 - WALL_THICKNESS)
    picture[~(inside[:, None] & inside[None, :])] = scene.wall
    return picture


def _draw_chunk(
    scene: Scene, background: Array, times: npt.NDArray[np.float64], image_size: int
) -> npt.NDArray[np.uint8]:
    margin = image_size // 2
    canvas = np.repeat(background[None], len(times), axis=0)
    for actor in scene.actors:
        _draw_actor(canvas, actor, times, image_size, margin)
    visible = canvas[:, margin : margin + image_size, margin : margin + image_size]
    return (np.clip(visible, 0, 1) * 255 + 0.5).astype(np.uint8)
