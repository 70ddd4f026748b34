"""Windows over audio of any length: where they begin, how their overlaps are blended, and which prompt they follow.

    grid = plan_windows(codec, 60.0)
    rows = plan_rows(grid, (), codec)        # one per window and prompt

A window has the duration of training. Windows begin on the frame grid of CLIP, so that they share frames; the last one
ends with the audio.

Legend: W windows, N latent tokens of a window, T latent tokens of the audio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmaudio.generation.prompt_table import TimedPrompt
from mmaudio.model.spec import CLIP_FPS, CLIP_SECONDS, CodecSpec, compute_lengths

OVERLAP_SECONDS = 2.0
"""Least overlap of two windows, and the time over which one fades into the other."""
MIN_WEIGHT = 1e-3
"""Of a window's outermost tokens, before the weights of all windows are scaled to a sum of 1."""


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one piece of audio."""

    num_tokens: int
    """T."""
    window_tokens: int
    """N."""
    start_times: tuple[float, ...]
    """Seconds from the beginning of the audio."""
    starts: tuple[int, ...]
    """First latent token of each window, the one nearest to its start time."""
    window_seconds: float
    """Duration of a window."""

    def weights(self) -> Tensor:
        """Weight of every window's tokens, (W, N): smooth, and 1 in sum at every token."""
        fade = max(1, round(self.window_tokens * OVERLAP_SECONDS / self.window_seconds))
        ramp = (1 - torch.cos(torch.pi * (torch.arange(fade, dtype=torch.float64) + 0.5) / fade)) / 2
        shape = torch.ones(self.window_tokens, dtype=torch.float64)
        shape[:fade], shape[-fade:] = ramp, ramp.flip(0)
        shape = shape.clamp(min=MIN_WEIGHT)
        total = torch.zeros(self.num_tokens, dtype=torch.float64)
        for start in self.starts:
            total[start : start + self.window_tokens] += shape
        weights = [shape / total[start : start + self.window_tokens] for start in self.starts]
        return torch.stack(weights).float()


@dataclass(frozen=True)
class WindowRow:
    """A window under one prompt: a row of the network's batch."""

    window: int
    prompt: str
    weights: Tensor
    """Of its velocity at the window's tokens, (N,); 0 where another prompt holds."""


def plan_windows(codec: CodecSpec, seconds: float) -> WindowGrid:
    """Plan the windows of `seconds` of audio: a single one for up to 8 s, else of 8 s, evenly spaced."""
    rest = seconds - CLIP_SECONDS
    if rest <= 0:
        return one_window(codec, seconds)
    num_tokens = compute_lengths(codec, seconds).latent_tokens
    window_tokens = compute_lengths(codec).latent_tokens
    count = math.ceil(rest / (CLIP_SECONDS - OVERLAP_SECONDS) - 1e-9)
    times = [*(math.floor(CLIP_FPS * rest * index / count + 1e-9) / CLIP_FPS for index in range(count)), rest]
    tokens_per_second = codec.sample_rate / codec.hop_length / 2
    last_start = num_tokens - window_tokens
    starts = [*(min(round(time * tokens_per_second), last_start) for time in times[:-1]), last_start]
    return WindowGrid(num_tokens, window_tokens, tuple(times), tuple(starts), CLIP_SECONDS)


def one_window(codec: CodecSpec, seconds: float) -> WindowGrid:
    """A single window over all of `seconds`."""
    num_tokens = compute_lengths(codec, seconds).latent_tokens
    return WindowGrid(num_tokens, num_tokens, (0.0,), (0,), seconds)


def plan_rows(grid: WindowGrid, prompts: Sequence[TimedPrompt], codec: CodecSpec) -> list[WindowRow]:
    """Plan the rows of the batch: every window with each of the `prompts` (one after the other) that it touches."""
    tokens_per_second = codec.sample_rate / codec.hop_length / 2
    edges = [round(prompt.start * tokens_per_second) for prompt in prompts[1:]]
    bounds = list(zip([0, *edges], [*edges, grid.num_tokens], strict=True))
    rows = []
    for window, (start, weights) in enumerate(zip(grid.starts, grid.weights(), strict=True)):
        tokens = torch.arange(start, start + grid.window_tokens)
        for prompt, (first, end) in zip(prompts, bounds, strict=True):
            inside = (tokens >= first) & (tokens < end)
            if inside.any():
                rows.append(WindowRow(window, prompt.text, weights * inside))
    return rows
