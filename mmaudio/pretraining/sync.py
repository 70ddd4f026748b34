"""Stage 2: the sync encoder, trained alone to say what is heard in each of its tokens' 80 ms, then frozen.

Three linears that are thrown away read each token: one gives the mel spectrogram (its 5 frames, pooled to 20 bands),
one whether something is struck or switched in each of the 5 frames, one what moves and how (speed, nearness to a wall,
time to the next and from the last event). The last one is what starts the learning: from the sound alone, nothing is
learned in thousands of steps. On a quarter of every batch the colours are replaced and the mel does not count, since
timing has to come from motion, whatever the object.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from mmaudio.features.mel import build_mel
from mmaudio.features.synchformer import Synchformer, build_synchformer
from mmaudio.model.spec import SEGMENT_FRAMES, TOKENS_PER_SEGMENT
from mmaudio.pretraining.data import Shard
from mmaudio.pretraining.loop import Log, Recipe, train
from mmaudio.synthetic.motion import BORDER
from mmaudio.synthetic.scenes import Scene

BANDS = 20
MEL_FRAMES = 5
"""Mel frames (16 ms) of a token (80 ms)."""
FRAME_SECONDS = 0.016
MOTIONS = 15
"""Numbers of `motion_of`."""


class SyncTrainer(nn.Module):
    """The encoder with the two readers, and the loss."""

    def __init__(self, encoder: Synchformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.mel = nn.Linear(encoder.spec.width, MEL_FRAMES * BANDS)
        self.struck = nn.Linear(encoder.spec.width, MEL_FRAMES)
        self.motion = nn.Linear(encoder.spec.width, MOTIONS)

    def forward(self, segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised frames (B, 16, 3, H, W) -> mel (B, 8, 5 * 20), logits of events (B, 8, 5), motion (B, 8, 15)."""
        features = self.encoder(segments[:, None])[:, 0]
        return self.mel(features), self.struck(features), self.motion(features)


class SyncData:
    """Frames and targets of all training clips, and how a batch is drawn from them."""

    def __init__(self, shards: Sequence[Shard], scenes: Sequence[Scene]) -> None:
        self.frames = [shard.frames for shard in shards]
        self.mel = torch.cat([pooled_mel(shard.audio) for shard in shards])  # (clips, 500, 20)
        self.mean, self.std = self.mel.mean((0, 1)), self.mel.std((0, 1))
        self.struck = torch.cat([event_frames(shard.events, self.mel.shape[1]) for shard in shards])  # (clips, 500)
        motion = torch.stack([motion_of(scene) for scene in scenes])  # (clips, 100, 15)
        self.motion = (motion - motion.mean((0, 1))) / motion.std((0, 1)).clamp(min=1e-6)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Segments (B, 16, 3, H, W), mel (B, 8, 100), events (B, 8, 5), motion (B, 8, 15), true colours or not (B,)."""
        shard_size = len(self.frames[0])
        clips = torch.randint(len(self.mel), (size,), generator=generator)
        steps = torch.randint((self.frames[0].shape[1] - SEGMENT_FRAMES) // 2 + 1, (size,), generator=generator)
        rows = [
            self.frames[clip // shard_size][clip % shard_size, 2 * step : 2 * step + SEGMENT_FRAMES]
            for clip, step in zip(clips.tolist(), steps.tolist(), strict=True)
        ]
        pictures = flip(torch.stack(rows), generator).float().mul_(1 / 127.5).sub_(1)
        true = torch.arange(size) < size - size // 4
        recolour(pictures[size - size // 4 :], generator)
        pictures = rearrange(pictures, "b t h w c -> b t c h w")
        span = steps[:, None] * MEL_FRAMES + torch.arange(TOKENS_PER_SEGMENT * MEL_FRAMES)
        mel = (self.mel[clips[:, None], span] - self.mean) / self.std
        struck = self.struck[clips[:, None], span]
        tokens = TOKENS_PER_SEGMENT
        return (
            pictures,
            rearrange(mel, "b (k f) m -> b k (f m)", k=tokens),
            rearrange(struck, "b (k f) -> b k f", k=tokens),
            self.motion[clips[:, None], steps[:, None] + torch.arange(tokens)],
            true,
        )


RECIPE = Recipe(steps=7000, learning_rate=2e-3, muon=1e-2, warmup=60, ema=0.995, parts=1, compile=True)
BATCH = 64
"""Segments of 16 frames."""


def initialise(encoder: Synchformer, generator: torch.Generator) -> None:
    """Weights that see motion from the first step on: without this, training does not leave the trivial answer.

    Linears get variance 1 / inputs. Patch filters are smooth in space, and three quarters of them are differences of
    their two frames, so that a background, which fills most of every patch, does not hide what moves.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_weight, std=module.embed_dim**-0.5, generator=generator)
    weight = encoder.vfeat_extractor.patch_embed_3d.proj.weight  # (D, 3, 2, 16, 16)
    width, colours, frames, side, _ = weight.shape
    coarse = torch.randn(width * colours, frames, side // 4, side // 4, generator=generator)
    smooth = F.interpolate(coarse, side, mode="bilinear").view(weight.shape)
    smooth[width // 4 :, :, 1] = -smooth[width // 4 :, :, 0]
    smooth[: width // 4] *= 0.3
    with torch.no_grad():
        weight.copy_(0.06 * smooth)


def train_sync(
    shards: Sequence[Shard], scenes: Sequence[Scene], path: Path, seed: int, log: Log, recipe: Recipe = RECIPE
) -> Synchformer:
    """The trained encoder; its trainer's state lies at `path` when done."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainer = SyncTrainer(build_synchformer("tiny_16k"))
    initialise(trainer.encoder, torch.Generator().manual_seed(seed))
    data = SyncData(shards, scenes)
    loss = recipe.compiled(functools.partial(sync_loss, trainer))
    train(trainer, lambda generator: loss(*data.batch(BATCH, generator)), recipe, path, seed, log)
    return trainer.encoder.eval()


def sync_loss(
    trainer: SyncTrainer,
    pictures: Tensor,  # (B, 16, 3, H, W)
    mel: Tensor,  # (B, 8, 100)
    struck: Tensor,  # (B, 8, 5)
    motion: Tensor,  # (B, 8, 15)
    true: Tensor,  # (B,)
) -> Tensor:
    """Mean squared mel error where the colours are true, cross-entropy of the events, squared error of the motion."""
    found_mel, found_struck, found_motion = trainer(pictures)
    errors = (found_mel.float() - mel).square().mean((1, 2))
    mel_error = (errors * true).sum() / true.sum()
    motion_error = (found_motion.float() - motion).square().mean()
    struck_error = F.binary_cross_entropy_with_logits(found_struck.float(), struck)
    total: Tensor = mel_error + 2 * struck_error + motion_error
    return total


def flip(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror a quarter each of some segments (B, T, H, W, 3) left to right, top to bottom, and both."""
    quarter = -(-len(pictures) // 4)
    sides: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))
    order = torch.randperm(4, generator=generator).tolist()
    parts = torch.split(pictures, quarter)
    return torch.cat([part.flip(sides[order[i]]) if sides[order[i]] else part for i, part in enumerate(parts)])


def recolour(pictures: Tensor, generator: torch.Generator) -> None:
    """Mix and stretch the colours of (B, T, H, W, 3), values in [-1, 1], in place."""
    size = len(pictures)
    mix = torch.rand(size, 3, 3, generator=generator)
    mix = mix.square() / mix.square().sum(1, keepdim=True)
    gain = 0.5 + torch.rand(size, 1, 3, generator=generator)
    shift = 0.4 * torch.rand(size, 1, 3, generator=generator) - 0.2
    mixed = torch.baddbmm(shift, pictures.flatten(1, 3), mix * gain)
    pictures.copy_(mixed.clamp_(-1, 1).view_as(pictures))


def pooled_mel(audio: Tensor) -> Tensor:
    """Waveforms (n, samples) -> log-mel in 20 bands (n, frames, 20)."""
    pooled: Tensor = reduce(build_mel("tiny_16k")(audio.float()), "n (m p) t -> n t m", "mean", m=BANDS)
    return pooled


def motion_of(scene: Scene, tokens: int = 100) -> Tensor:
    """What a token's picture says of motion, whoever moves and whichever way the picture is mirrored: (tokens, 15).

    Nearness to the walls, its change, speed, glow and uprightness, summed over the objects that are heard; and for each
    mel frame how near the next and the last event are in time.
    """
    centre: npt.NDArray[np.float64] = (np.arange(tokens, dtype=np.float64) + 0.5) * (MEL_FRAMES * FRAME_SECONDS)
    rows = np.zeros((5, tokens))
    for actor in scene.actors:
        if not actor.heard:
            continue
        before, pose, after = (actor.motion.pose(centre + shift) for shift in (-0.02, 0.0, 0.02))
        near = [
            np.exp(-(np.minimum.reduce([p.x, p.y, 1 - p.x, 1 - p.y]) - BORDER - actor.radius) / 0.12)
            for p in (before, pose, after)
        ]
        speed = np.hypot(after.x - before.x, after.y - before.y) / 0.04
        loudness = actor.motion.loudness(centre)
        rows += [near[1], (near[2] - near[0]) / 0.04, speed, pose.glow, 0 * centre if loudness is None else loudness]
    times = (np.arange(tokens * MEL_FRAMES) + 0.5) * FRAME_SECONDS
    gaps = times[:, None] - np.asarray([event.time for event in scene.events] or [-9.0])[None]
    last = np.exp(-np.where(gaps >= 0, gaps, 9.0).min(1) / 0.12)
    following = np.exp(-np.where(gaps <= 0, -gaps, 9.0).min(1) / 0.12)
    per_frame = np.concatenate([last.reshape(tokens, MEL_FRAMES), following.reshape(tokens, MEL_FRAMES)], axis=1)
    return torch.from_numpy(np.concatenate([rows.T, per_frame], axis=1)).float()


def event_frames(events: Sequence[Sequence[float]], frames: int) -> Tensor:
    """Event times -> (n, frames) with 1 at each event's mel frame and 0.5 on both sides of it."""
    marks = torch.zeros(len(events), frames)
    for row, times in zip(marks, events, strict=True):
        for time in times:
            centre = int(time / FRAME_SECONDS)
            for offset, height in ((-1, 0.5), (1, 0.5), (0, 1.0)):
                if 0 <= centre + offset < frames:
                    row[centre + offset] = max(height, float(row[centre + offset]))
    return marks
