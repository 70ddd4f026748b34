"""Stage 4: CLIP, by contrast of stills and captions.

B clips of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from mmaudio.features.clip import MEAN, STD, ClipEncoder, build_clip
from mmaudio.pretraining.objective import Objective
from mmaudio.pretraining.recipe import Recipe
from mmaudio.pretraining.shards import Shard, concatenate_on_gpu
from mmaudio.pretraining.stage_run import StageRun

RECIPE = Recipe(steps=1400, learning_rate=1e-3, warmup_steps=100, ema_decay=0.99, weight_decay=1e-3, micro_batches=1)
BATCH_SIZE = 96


class ClipBatches:
    """Stills and captions of all training clips, on the device that trains."""

    def __init__(self, shards: Sequence[Shard], clip: ClipEncoder, device: torch.device) -> None:
        self.stills_by_shard = [shard.stills for shard in shards]
        self.gpu_stills = concatenate_on_gpu(self.stills_by_shard, device)
        """(clips, 64, 64, 64, 3) uint8, None where they stay in their files."""
        captions = [caption for shard in shards for caption in shard.captions]
        distinct = sorted(set(captions))
        self.tokens = clip.tokenize(distinct).to(device)  # (distinct captions, 77)
        self.caption_index = torch.tensor([distinct.index(caption) for caption in captions], device=device)  # (clips,)
        self.mean, self.std = (torch.tensor(colour, device=device)[:, None, None] for colour in (MEAN, STD))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random clips (B,) and times (B,), and their stills (B, H, W, 3); no stills where the GPU has them."""
        rows = torch.randint(len(self.caption_index), (BATCH_SIZE,), generator=generator)
        times = torch.randint(self.stills_by_shard[0].shape[1], (BATCH_SIZE,), generator=generator)
        if self.gpu_stills is not None:
            return rows, times, torch.empty(0)
        shard_size = len(self.stills_by_shard[0])
        pairs = zip(rows.tolist(), times.tolist(), strict=True)
        stills = [self.stills_by_shard[row // shard_size][row % shard_size, time] for row, time in pairs]
        return rows, times, torch.stack(stills)


def clip_loss(clip: ClipEncoder, data: ClipBatches, rows: Tensor, times: Tensor, stills: Tensor) -> Tensor:
    """Symmetric cross-entropy of stills against captions; equal captions share the target."""
    images = stills if data.gpu_stills is None else data.gpu_stills[rows, times]
    images = (rearrange(images, "b h w c -> b c h w").float() / 255 - data.mean) / data.std
    caption_index = data.caption_index[rows]
    image_features = clip.model.encode_image(images, normalize=True)
    text_features = clip.model.encode_text(data.tokens[caption_index], normalize=True)
    logits = clip.model.logit_scale.exp().clamp(max=50) * image_features.float() @ text_features.float().T
    target = (caption_index[:, None] == caption_index[None]).float()
    target = target / target.sum(1, keepdim=True)
    over_texts = (logits.log_softmax(1) * target).sum(1).mean()
    over_images = (logits.log_softmax(0) * target).sum(0).mean()
    loss: Tensor = -(over_texts + over_images) / 2
    return loss


def train_clip(shards: Sequence[Shard], run: StageRun) -> ClipEncoder:
    """The trained CLIP."""
    clip = run.build_seeded(lambda: build_clip("tiny_16k")).to(run.device)
    data = ClipBatches(shards, clip, run.device)
    run.train(clip, Objective(data.draw, functools.partial(clip_loss, clip, data)))
    return clip.eval()
