"""Augmentation of sync segments: mirrored pictures and random colours, so that only motion tells the timing.

B segments, T frames, b segments whose colours are replaced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmaudio.model.spec import FRAMES_PER_SEGMENT

FLIP_DIMENSIONS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))
"""Dimensions of (B, T, H, W, 3) that each kind of mirroring flips."""


def flip_segments(pictures: Tensor, flip_order: Tensor) -> Tensor:
    """Mirror a quarter each of some segments (B, T, H, W, 3) top to bottom, left to right, both, and not at all.

    `flip_order` (4,): the kind of mirroring of each quarter.
    """
    quarter_size = -(-len(pictures) // 4)
    quarters = zip(torch.split(pictures, quarter_size), flip_order.tolist(), strict=False)
    flips = ((quarter, FLIP_DIMENSIONS[kind]) for quarter, kind in quarters)
    return torch.cat([quarter.flip(dimensions) if dimensions else quarter for quarter, dimensions in flips])


def gather_flipped_segments(source: Tensor, rows: Tensor, first_frames: Tensor, flip_order: Tensor) -> Tensor:
    """`flip_segments` of segments given by their indices: (n, frames, H, W, 3), rows (B,), first frames (B,).

    One gather, without a step that waits for the device.
    """
    device, (_, _, height, width, _) = source.device, source.shape
    kind = flip_order[torch.arange(len(rows), device=device) // -(-len(rows) // 4)]
    times = first_frames[:, None] + torch.arange(FRAMES_PER_SEGMENT, device=device)
    y, x = (torch.arange(side, device=device) for side in (height, width))
    y = torch.where((kind % 2 == 1)[:, None], height - 1 - y, y)  # (B, H)
    x = torch.where((kind >= 2)[:, None], width - 1 - x, x)  # (B, W)
    return source[rows[:, None, None, None], times[:, :, None, None], y[:, None, :, None], x[:, None, None]]


def draw_colour_mix(batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random numbers for `recolour_` of a quarter of the segments: mix (b, 3, 3), gain and shift (b, 1, 3)."""
    count = batch_size // 4
    return (
        torch.rand(count, 3, 3, generator=generator),
        torch.rand(count, 1, 3, generator=generator),
        torch.rand(count, 1, 3, generator=generator),
    )


def recolour_(pictures: Tensor, mix: Tensor, gain: Tensor, shift: Tensor) -> None:
    """Mix and stretch the colours of (b, T, H, W, 3), values in [-1, 1], in place, by uniform random numbers."""
    mix = mix.square() / mix.square().sum(1, keepdim=True)
    mixed = torch.baddbmm(0.4 * shift - 0.2, pictures.flatten(1, 3), mix * (0.5 + gain))
    pictures.copy_(mixed.clamp_(-1, 1).view_as(pictures))
