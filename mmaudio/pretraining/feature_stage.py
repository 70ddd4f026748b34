"""Stage 5: what the network is trained on, computed once by the frozen encoders; and the same for held-out clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from mmaudio.features.clip import ClipEncoder, normalise
from mmaudio.features.mel import build_mel
from mmaudio.features.synchformer import Synchformer, segments
from mmaudio.features.vae import VAE
from mmaudio.pretraining.shards import Shard
from mmaudio.pretraining.training_loop import Log

CHUNK = 5
"""Clips that are encoded at once."""


@dataclass(frozen=True)
class Features:
    """Latents and conditions of K clips."""

    mean: Tensor  # (K, N, C)
    std: Tensor  # (K, N, C)
    clip: Tensor  # (K, V, clip_dim)
    sync: Tensor  # (K, S, sync_dim)
    text: Tensor  # (captions, L, text_dim), row 0 of the empty text
    caption: Tensor  # (K,) int64, row of `text`

    def to(self, device: torch.device) -> Features:
        """The same on the device."""
        return Features(*(getattr(self, part.name).to(device) for part in fields(self)))


@torch.inference_mode()
def features_of(shard: Shard, vae: VAE, sync: Synchformer, clip: ClipEncoder) -> dict[str, Tensor]:
    """The features of one shard's clips, all but the text's, on the CPU; the encoders of pictures run in bfloat16."""
    device = next(vae.parameters()).device
    mel = build_mel("tiny_16k").to(device)
    rows: dict[str, list[Tensor]] = {"mean": [], "std": [], "clip": [], "sync": []}
    for start in range(0, len(shard.captions), CHUNK):
        span = slice(start, start + CHUNK)
        posterior = vae.encode(mel(shard.audio[span].to(device).float()))
        rows["mean"].append(posterior.mean.mT)
        rows["std"].append(posterior.std.mT)
        stills = rearrange(shard.stills[span].to(device), "k t h w c -> k t c h w").float() / 255
        frames = rearrange(shard.frames[span].to(device), "k t h w c -> k t c h w").float() / 127.5 - 1
        with torch.autocast(stills.device.type, torch.bfloat16):
            rows["clip"].append(clip.encode_frames(normalise(stills)).float())
            tokens = sync(torch.stack([segments(clip_frames) for clip_frames in frames]))
        rows["sync"].append(tokens.flatten(1, 2).float())
    return {name: torch.cat(values).cpu().clone() for name, values in rows.items()}


def compute_features(
    shards: Sequence[Shard], vae: VAE, sync: Synchformer, clip: ClipEncoder, path: Path, log: Log
) -> Features:
    """The features of all clips; they lie at `path` when done."""
    if not path.exists():
        parts = []
        for number, shard in enumerate(shards):
            parts.append(features_of(shard, vae, sync, clip))
            log(f"features: shard {number + 1}/{len(shards)}")
        texts = ["", *sorted({caption for shard in shards for caption in shard.captions})]
        row = {text: index for index, text in enumerate(texts)}
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        with torch.inference_mode():
            tensors["text"] = torch.cat([clip.encode_text([text]) for text in texts]).cpu().clone()
        tensors["caption"] = torch.tensor([row[caption] for shard in shards for caption in shard.captions])
        torch.save(tensors, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return Features(**torch.load(path, map_location="cpu", weights_only=True))
