"""A still with audio as a video."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmaudio.media.mux import write_video
from mmaudio.media.picture import read_picture

MAX_SIDE = 1920
"""Longest side of the video in pixels."""


def write_still_video(
    path: Path, picture: Path, waveform: npt.ArrayLike, sample_rate: int, tags: Mapping[str, str] | None = None
) -> None:
    """Write the picture, for as long as `waveform` (samples,) lasts, with it into an MP4: about a frame per second.

    Raises DataError for a picture that is none, and the errors of `write_video`.
    """
    image = Image.fromarray(read_picture(picture).permute(1, 2, 0).numpy())
    scale = min(1.0, MAX_SIDE / max(image.size))
    pixels = np.asarray(image.resize([max(2, 2 * round(side * scale / 2)) for side in image.size]))
    seconds = Fraction(len(np.asarray(waveform)), sample_rate)
    count = max(2, math.ceil(seconds))
    write_video(path, repeat(pixels, count), count / seconds, waveform, sample_rate, tags=tags)
