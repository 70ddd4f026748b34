"""Bicubic resizing of video frames for the encoders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmaudio.errors import DataError


def resize_frames(frames: Tensor, size: Sequence[int]) -> Tensor:
    """RGB uint8 (N, 3, H, W) -> uint8 of `size`: (height, width), or (shorter edge,).

    Raises DataError for frames that are not uint8: resizing them would round differently.
    """
    if frames.dtype != torch.uint8:
        raise DataError(f"frames are {frames.dtype}: they are resized as torch.uint8")
    from torchvision.transforms.v2 import InterpolationMode  # slow to import
    from torchvision.transforms.v2 import functional as vision

    resized: Tensor = vision.resize(frames, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized
