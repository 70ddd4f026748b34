"""Stage 4: CLIP, by contrast of stills and captions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from mmaudio.features.clip import MEAN, STD, ClipEncoder, build_clip
from mmaudio.pretraining.gpu_steps import CPU, Objective, hold
from mmaudio.pretraining.shards import Shard
from mmaudio.pretraining.training_loop import Log, Recipe, train

RECIPE = Recipe(steps=1400, learning_rate=1e-3, warmup=100, ema=0.99, weight_decay=1e-3, parts=1)
BATCH = 96


class ClipData:
    """Stills and captions of all training clips, on the device that trains."""

    def __init__(self, shards: Sequence[Shard], clip: ClipEncoder, device: torch.device) -> None:
        self.parts = [shard.stills for shard in shards]
        self.held = hold(self.parts, device)
        """(clips, 64, 64, 64, 3) uint8, None where they stay in their files."""
        captions = [caption for shard in shards for caption in shard.captions]
        kinds = sorted(set(captions))
        self.tokens = clip.tokenize(kinds).to(device)  # (kinds, 77)
        self.kind = torch.tensor([kinds.index(caption) for caption in captions], device=device)  # (clips,)
        self.mean, self.std = (torch.tensor(colour, device=device)[:, None, None] for colour in (MEAN, STD))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Clips (B,) and times (B,) at random, and their stills (B, H, W, 3), none where they are held."""
        rows = torch.randint(len(self.kind), (BATCH,), generator=generator)
        times = torch.randint(self.parts[0].shape[1], (BATCH,), generator=generator)
        if self.held is not None:
            return rows, times, torch.empty(0)
        size = len(self.parts[0])
        pairs = zip(rows.tolist(), times.tolist(), strict=True)
        return rows, times, torch.stack([self.parts[row // size][row % size, at] for row, at in pairs])


def clip_loss(clip: ClipEncoder, data: ClipData, rows: Tensor, times: Tensor, stills: Tensor) -> Tensor:
    """Symmetric cross-entropy of stills against captions; equal captions share the target."""
    pictures = stills if data.held is None else data.held[rows, times]
    pictures = (rearrange(pictures, "b h w c -> b c h w").float() / 255 - data.mean) / data.std
    kinds = data.kind[rows]
    image = clip.model.encode_image(pictures, normalize=True)
    text = clip.model.encode_text(data.tokens[kinds], normalize=True)
    logits = clip.model.logit_scale.exp().clamp(max=50) * image.float() @ text.float().T
    target = (kinds[:, None] == kinds[None]).float()
    target = target / target.sum(1, keepdim=True)
    over_texts = (logits.log_softmax(1) * target).sum(1).mean()
    over_stills = (logits.log_softmax(0) * target).sum(0).mean()
    loss: Tensor = -(over_texts + over_stills) / 2
    return loss


def train_clip(
    shards: Sequence[Shard],
    path: Path,
    seed: int,
    log: Log,
    recipe: Recipe = RECIPE,
    device: torch.device = CPU,
) -> ClipEncoder:
    """The trained encoder; its state lies at `path` when done."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = build_clip("tiny_16k")
    clip.to(device)
    data = ClipData(shards, clip, device)
    train(clip, Objective(data.draw, functools.partial(clip_loss, clip, data)), recipe, path, seed, log)
    return clip.eval()
