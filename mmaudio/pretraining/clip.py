"""Stage 4: CLIP, by contrast of stills and captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from mmaudio.features.clip import ClipEncoder, build_clip, normalise
from mmaudio.pretraining.data import Shard
from mmaudio.pretraining.loop import Log, Recipe, train

RECIPE = Recipe(steps=1400, learning_rate=1e-3, warmup=100, ema=0.99, weight_decay=1e-3, parts=1)
BATCH = 96


def clip_loss(
    clip: ClipEncoder, shards: Sequence[Shard], captions: Sequence[str], generator: torch.Generator
) -> Tensor:
    """Symmetric cross-entropy of stills against captions; equal captions share the target."""
    size = len(shards[0].captions)
    rows = torch.randint(len(captions), (BATCH,), generator=generator).tolist()
    times = torch.randint(shards[0].stills.shape[1], (BATCH,), generator=generator).tolist()
    stills = torch.stack([shards[row // size].stills[row % size, at] for row, at in zip(rows, times, strict=True)])
    texts = [captions[row] for row in rows]
    image = clip.model.encode_image(normalise(rearrange(stills, "b h w c -> b c h w").float() / 255), normalize=True)
    text = clip.model.encode_text(clip.tokenize(texts), normalize=True)
    logits = clip.model.logit_scale.exp().clamp(max=50) * image.float() @ text.float().T
    target = torch.tensor([[float(a == b) for b in texts] for a in texts])
    target = target / target.sum(1, keepdim=True)
    over_texts = (logits.log_softmax(1) * target).sum(1).mean()
    over_stills = (logits.log_softmax(0) * target).sum(0).mean()
    loss: Tensor = -(over_texts + over_stills) / 2
    return loss


def train_clip(shards: Sequence[Shard], path: Path, seed: int, log: Log, recipe: Recipe = RECIPE) -> ClipEncoder:
    """The trained encoder; its state lies at `path` when done."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = build_clip("tiny_16k")
    captions = [caption for shard in shards for caption in shard.captions]
    train(clip, lambda generator: clip_loss(clip, shards, captions, generator), recipe, path, seed, log)
    return clip.eval()
