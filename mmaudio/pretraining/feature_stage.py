"""Stage 5: latents and conditions of all clips, computed once by the frozen encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from mmaudio.features.clip import ClipEncoder, normalize_frames
from mmaudio.features.mel import build_mel
from mmaudio.features.synchformer import Synchformer, split_segments
from mmaudio.features.vae import VAE
from mmaudio.pretraining.shards import Shard
from mmaudio.pretraining.training_loop import Log
from mmaudio.utils.files import atomic_write

CLIPS_PER_CHUNK = 5
"""Clips that are encoded at once."""


@dataclass(frozen=True)
class CachedFeatures:
    """Latents and conditions of K clips; the fields are the keys of the file."""

    mean: Tensor  # (K, N, C)
    std: Tensor  # (K, N, C)
    clip: Tensor  # (K, V, clip_dim)
    sync: Tensor  # (K, S, sync_dim)
    text: Tensor  # (captions, L, text_dim), row 0 of the empty text
    caption: Tensor  # (K,) int64, row of `text`

    def to(self, device: torch.device) -> CachedFeatures:
        """The same on the device."""
        return CachedFeatures(*(getattr(self, field.name).to(device) for field in fields(self)))


@torch.inference_mode()
def encode_shard(shard: Shard, vae: VAE, sync: Synchformer, clip: ClipEncoder) -> dict[str, Tensor]:
    """Features of one shard's clips without the text's, on the CPU; the visual encoders run in bfloat16."""
    device = next(vae.parameters()).device
    mel = build_mel("tiny_16k").to(device)
    rows: dict[str, list[Tensor]] = {"mean": [], "std": [], "clip": [], "sync": []}
    for start in range(0, len(shard.captions), CLIPS_PER_CHUNK):
        chunk = slice(start, start + CLIPS_PER_CHUNK)
        posterior = vae.encode(mel(shard.audio[chunk].to(device).float()))
        rows["mean"].append(posterior.mean.mT)
        rows["std"].append(posterior.std.mT)
        stills = rearrange(shard.stills[chunk].to(device), "k t h w c -> k t c h w").float() / 255
        frames = rearrange(shard.frames[chunk].to(device), "k t h w c -> k t c h w").float() / 127.5 - 1
        with torch.autocast(stills.device.type, torch.bfloat16):
            rows["clip"].append(clip.encode_frames(normalize_frames(stills)).float())
            tokens = sync(torch.stack([split_segments(clip_frames) for clip_frames in frames]))
        rows["sync"].append(tokens.flatten(1, 2).float())
    return {name: torch.cat(values).cpu().clone() for name, values in rows.items()}


def compute_features(
    shards: Sequence[Shard], vae: VAE, sync: Synchformer, clip: ClipEncoder, path: Path, log: Log
) -> CachedFeatures:
    """Features of all clips, saved at `path`, or read from there."""
    if not path.exists():
        encoded_shards = []
        for number, shard in enumerate(shards):
            encoded_shards.append(encode_shard(shard, vae, sync, clip))
            log(f"features: shard {number + 1}/{len(shards)}")
        texts = ["", *sorted({caption for shard in shards for caption in shard.captions})]
        row = {text: index for index, text in enumerate(texts)}
        tensors = {name: torch.cat([encoded[name] for encoded in encoded_shards]) for name in encoded_shards[0]}
        with torch.inference_mode():
            tensors["text"] = torch.cat([clip.encode_text([text]) for text in texts]).cpu().clone()
        tensors["caption"] = torch.tensor([row[caption] for shard in shards for caption in shard.captions])
        with atomic_write(path) as temporary:
            torch.save(tensors, temporary)
    return CachedFeatures(**torch.load(path, map_location="cpu", weights_only=True))
