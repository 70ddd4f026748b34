"""Audio of any length from windows that are denoised together, as in MultiDiffusion (arXiv 2302.08113).

At every solver step the velocity of each window is predicted, and velocities of windows that overlap are blended by
smooth weights: the windows agree on the audio before it exists. VAE and vocoder then decode in overlapping pieces.

What is in memory does not grow with the length but for the latents (S, T, C) and the audio itself, if the parts are
stored on disk.

Legend: S samples, W windows, N latent tokens of a window, T latent tokens of the audio, C latent channels, M mel bands,
F mel frames, V CLIP tokens, K sync tokens, L text tokens, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmaudio.generation.conditions import Progress, WindowFeatures
from mmaudio.generation.part_store import PartStore
from mmaudio.generation.sampler import Sampler
from mmaudio.generation.solver import progress_label, solve
from mmaudio.generation.windows import WindowGrid, WindowRow
from mmaudio.model.flow_matching import Velocity
from mmaudio.model.guidance import guided_velocity

BATCH_ROWS = {"cuda": 8, "cpu": 2}
"""Windows whose velocity is predicted in one batch."""
FRAMES_PER_TOKEN = 2
"""Mel frames of a latent token."""
LATENTS = "latents"


@dataclass(frozen=True)
class LongRequest:
    """What the windows of one piece of audio follow."""

    grid: WindowGrid
    rows: Sequence[WindowRow]
    features: WindowFeatures
    text_features: Mapping[str, Tensor]
    """By prompt, (1, L, D)."""
    negative_features: Tensor | None
    """(1, L, D); None: the empty text."""
    num_steps: int
    guidance_scale: float
    method: str


@torch.inference_mode()
def sample_windows(
    sampler: Sampler, request: LongRequest, noise: Tensor, store: PartStore, progress: Progress[int]
) -> Tensor:
    """Denoise all windows together: noise (S, T, C) -> latents (S, T, C) on the codec's scale.

    The state after every step is a part of `store`, from which a later call goes on.
    """
    x, position = noise, None
    if LATENTS in store:
        state = store.get(LATENTS)
        x, position = state["x"].to(noise), state["position"]
    with sampler.autocast():
        latents, sampler.solver_counts = solve(
            blend_velocities(sampler, request),
            x,
            request.method,
            request.num_steps,
            lambda steps: progress(steps, progress_label(request.method)),
            position,
            lambda position, x: store.put(LATENTS, {"x": x.cpu(), "position": position}),
        )
    return sampler.network.unnormalize(latents.float())


def blend_velocities(sampler: Sampler, request: LongRequest) -> Velocity:
    """The velocity of the whole audio, (S, T, C): that of each row's window, weighted and added up."""
    grid, rows = request.grid, request.rows
    size = BATCH_ROWS.get(sampler.device.type, BATCH_ROWS["cpu"])
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    weights = torch.stack([row.weights for row in rows]).to(sampler.device)[:, :, None]  # (rows, N, 1)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        """(S, T, C) at flow time t -> (S, T, C)."""
        total = torch.zeros_like(x)
        for number, batch in enumerate(batches):
            spans = [slice(start := grid.starts[row.window], start + grid.window_tokens) for row in batch]
            latents = torch.cat([x[:, span] for span in spans])  # (rows * S, N, C)
            velocities = predict_rows(sampler, request, batch, len(x))(latents, t).to(x.dtype)
            for index, span in enumerate(spans):
                total[:, span] += weights[number * size + index] * velocities[index * len(x) : (index + 1) * len(x)]
        return total

    return velocity


def predict_rows(sampler: Sampler, request: LongRequest, batch: Sequence[WindowRow], num_samples: int) -> Velocity:
    """The guided velocity of a batch of rows, each for `num_samples` latents, one row after the other."""
    network, device = sampler.network, sampler.device
    features = [request.features.get(row.window, network) for row in batch]
    clip_f, sync_f = (torch.cat(tensors).to(device, torch.float32) for tensors in zip(*features, strict=True))
    texts = [request.text_features[row.prompt] if row.prompt else network.empty_text(1) for row in batch]
    text_f = torch.cat([text.to(device, torch.float32) for text in texts])
    cond = network.preprocess_conditions(clip_f, sync_f, text_f)
    if num_samples > 1:
        cond = cond.select(torch.arange(len(batch), device=device).repeat_interleave(num_samples))
    negative_f = None if request.negative_features is None else request.negative_features.to(device)
    has_guidance = request.guidance_scale > 1
    uncond = network.empty_conditions(len(batch) * num_samples, negative_f) if has_guidance else None
    return guided_velocity(network, cond, uncond, request.guidance_scale)


class PieceDecoder:
    """Decoder of latents (T, C) in pieces of a window's length, each a part of the store."""

    def __init__(self, sampler: Sampler, grid: WindowGrid, latents: Tensor) -> None:
        self.sampler, self.grid, self.latents = sampler, grid, latents
        self.weights = grid.weights().repeat_interleave(FRAMES_PER_TOKEN, dim=1).to(latents.device)  # (W, F)
        self.context = sampler.vocoder.context_frames
        self._mels: dict[int, Tensor] = {}

    def decode(self, store: PartStore, name: str, progress: Progress[int]) -> Tensor:
        """The waveform (samples,), on the CPU."""
        num_frames, size = FRAMES_PER_TOKEN * self.grid.num_tokens, FRAMES_PER_TOKEN * self.grid.window_tokens
        firsts = range(0, num_frames, size)
        names = [f"{name}_{first:07d}" for first in firsts]
        for first, piece in zip(progress(firsts, "decoding, by piece"), names, strict=True):
            if piece not in store:
                store.put(piece, {"waveform": self.decode_piece(first, min(first + size, num_frames)).cpu()})
        return torch.cat([store.get(piece)["waveform"] for piece in names])

    @torch.inference_mode()
    def decode_piece(self, first: int, end: int) -> Tensor:
        """Samples of the mel frames from `first` to `end`; the vocoder sees `context` more on either side."""
        num_frames = FRAMES_PER_TOKEN * self.grid.num_tokens
        left, right = max(0, first - self.context), min(num_frames, end + self.context)
        waveform: Tensor = self.sampler.vocoder(self.blend_mels(left, right)[None])[0, 0]
        hop = self.sampler.spec.codec.hop_length
        return waveform[(first - left) * hop : (end - left) * hop].float()

    def blend_mels(self, left: int, right: int) -> Tensor:
        """The mel spectrogram from frame `left` to `right`, (M, F), from the windows that cover it."""
        size = FRAMES_PER_TOKEN * self.grid.window_tokens
        offsets = [FRAMES_PER_TOKEN * start for start in self.grid.starts]
        needed = [index for index, offset in enumerate(offsets) if offset < right and offset + size > left]
        self._mels = {index: self._mels[index] for index in needed if index in self._mels}
        total = torch.zeros(())
        for index in needed:
            if index not in self._mels:
                self._mels[index] = self._decode_window(index)
            first, last = max(left, offsets[index]), min(right, offsets[index] + size)
            span = slice(first - offsets[index], last - offsets[index])
            weighted = self.weights[index, span] * self._mels[index][:, span]
            total = total + torch.nn.functional.pad(weighted, (first - left, right - last))
        return total

    def _decode_window(self, index: int) -> Tensor:
        start = self.grid.starts[index]
        return self.sampler.decode_mel(self.latents[None, start : start + self.grid.window_tokens])[0]
