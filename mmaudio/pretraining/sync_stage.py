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
from mmaudio.pretraining.gpu_steps import CPU, Objective, hold
from mmaudio.pretraining.shards import Shard
from mmaudio.pretraining.training_loop import Log, Recipe, train
from mmaudio.synthetic.motion import BORDER
from mmaudio.synthetic.scenes import Scene

BANDS = 20
MEL_FRAMES = 5
"""Mel frames (16 ms) of a token (80 ms)."""
FRAME_SECONDS = 0.016
MOTIONS = 15
"""Numbers of `motion_of`."""


class SyncTrainer(nn.Module):
    """The encoder with the three linears that read its tokens."""

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
    """Frames and targets of all training clips, on the device that trains, and how a batch is drawn from them."""

    def __init__(self, shards: Sequence[Shard], scenes: Sequence[Scene], device: torch.device = CPU) -> None:
        self.device = device
        self.frames = [shard.frames for shard in shards]
        self.held = hold(self.frames, device)
        """(clips, 200, H, W, 3) uint8, None where they stay in their files."""
        self.mel = torch.cat([pooled_mel(shard.audio.to(device)) for shard in shards])  # (clips, 500, 20)
        self.mean, self.std = self.mel.mean((0, 1)), self.mel.std((0, 1))
        struck = torch.cat([event_frames(shard.events, self.mel.shape[1]) for shard in shards])
        self.struck = struck.to(device)  # (clips, 500)
        motion = torch.stack([motion_of(scene) for scene in scenes])  # (clips, 100, 15)
        self.motion = ((motion - motion.mean((0, 1))) / motion.std((0, 1)).clamp(min=1e-6)).to(device)

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """What is random in a batch of that size, the arguments of `batch_of`."""
        clips = torch.randint(len(self.mel), (size,), generator=generator)
        steps = torch.randint((self.frames[0].shape[1] - SEGMENT_FRAMES) // 2 + 1, (size,), generator=generator)
        return clips, steps, self.cut(clips, steps), torch.randperm(4, generator=generator), *colours(size, generator)

    def cut(self, clips: Tensor, steps: Tensor) -> Tensor:
        """The segments (B, 16, H, W, 3) uint8 from the files, nothing where the frames are held."""
        if self.held is not None:
            return torch.empty(0, dtype=torch.uint8)
        shard_size = len(self.frames[0])
        rows = [
            self.frames[clip // shard_size][clip % shard_size, 2 * step : 2 * step + SEGMENT_FRAMES]
            for clip, step in zip(clips.tolist(), steps.tolist(), strict=True)
        ]
        return torch.stack(rows)

    def batch_of(
        self,
        clips: Tensor,  # (B,)
        steps: Tensor,  # (B,), tokens that a segment starts at
        rows: Tensor,  # (B, 16, H, W, 3), `cut`'s
        order: Tensor,  # (4,), which sides of each quarter are mirrored
        *mixing: Tensor,  # `colours`'
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Segments (B, 16, 3, H, W), mel (B, 8, 100), events (B, 8, 5), motion (B, 8, 15), true colours or not (B,)."""
        size, tokens = len(clips), TOKENS_PER_SEGMENT
        if self.device.type == "cpu":
            mirrored = flip(rows, order)
        else:
            held = self.held
            source = (rows, torch.arange(size, device=self.device)) if held is None else (held, clips)
            mirrored = gather(*source, torch.zeros_like(steps) if held is None else 2 * steps, order)
        pictures = mirrored.float().mul_(1 / 127.5).sub_(1)
        true = torch.arange(size, device=self.device) < size - size // 4
        recolour(pictures[size - size // 4 :], *mixing)
        pictures = rearrange(pictures, "b t h w c -> b t c h w")
        span = steps[:, None] * MEL_FRAMES + torch.arange(tokens * MEL_FRAMES, device=self.device)
        mel = (self.mel[clips[:, None], span] - self.mean) / self.std
        struck = self.struck[clips[:, None], span]
        return (
            pictures,
            rearrange(mel, "b (k f) m -> b k (f m)", k=tokens),
            rearrange(struck, "b (k f) -> b k f", k=tokens),
            self.motion[clips[:, None], steps[:, None] + torch.arange(tokens, device=self.device)],
            true,
        )

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """A random batch on a CPU: `batch_of` what is drawn."""
        return self.batch_of(*self.draw(size, generator))


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
    shards: Sequence[Shard],
    scenes: Sequence[Scene],
    path: Path,
    seed: int,
    log: Log,
    recipe: Recipe = RECIPE,
    device: torch.device = CPU,
) -> Synchformer:
    """The trained encoder; its trainer's state lies at `path` when done."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainer = SyncTrainer(build_synchformer("tiny_16k"))
    initialise(trainer.encoder, torch.Generator().manual_seed(seed))
    trainer.to(device)
    data = SyncData(shards, scenes, device)
    loss = recipe.compiled(functools.partial(sync_loss, trainer), device)
    objective = Objective(functools.partial(data.draw, BATCH), lambda *drawn: loss(*data.batch_of(*drawn)))
    train(trainer, objective, recipe, path, seed, log)
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


def flip(pictures: Tensor, order: Tensor) -> Tensor:
    """Mirror a quarter each of some segments (B, T, H, W, 3) left to right, top to bottom, and both."""
    quarter = -(-len(pictures) // 4)
    sides: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))
    kinds = order.tolist()
    parts = torch.split(pictures, quarter)
    return torch.cat([part.flip(sides[kinds[i]]) if sides[kinds[i]] else part for i, part in enumerate(parts)])


def gather(source: Tensor, rows: Tensor, first: Tensor, order: Tensor) -> Tensor:
    """`flip` of the segments that start at frame `first` (B,) of the rows (B,) of (n, frames, H, W, 3), by indices."""
    device, (_, _, height, width, _) = source.device, source.shape
    kind = order[torch.arange(len(rows), device=device) // -(-len(rows) // 4)]
    times = first[:, None] + torch.arange(SEGMENT_FRAMES, device=device)
    down, across = (torch.arange(side, device=device) for side in (height, width))
    down = torch.where((kind % 2 == 1)[:, None], height - 1 - down, down)  # (B, H)
    across = torch.where((kind >= 2)[:, None], width - 1 - across, across)  # (B, W)
    return source[rows[:, None, None, None], times[:, :, None, None], down[:, None, :, None], across[:, None, None]]


def colours(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random numbers for `recolour` of a quarter of `size` segments: mix (b, 3, 3), gain and shift (b, 1, 3)."""
    count = size // 4
    return (
        torch.rand(count, 3, 3, generator=generator),
        torch.rand(count, 1, 3, generator=generator),
        torch.rand(count, 1, 3, generator=generator),
    )


def recolour(pictures: Tensor, mix: Tensor, gain: Tensor, shift: Tensor) -> None:
    """Mix and stretch the colours of (b, T, H, W, 3), values in [-1, 1], in place, by uniform random numbers."""
    mix = mix.square() / mix.square().sum(1, keepdim=True)
    mixed = torch.baddbmm(0.4 * shift - 0.2, pictures.flatten(1, 3), mix * (0.5 + gain))
    pictures.copy_(mixed.clamp_(-1, 1).view_as(pictures))


def pooled_mel(audio: Tensor) -> Tensor:
    """Waveforms (n, samples) -> log-mel in 20 bands (n, frames, 20)."""
    pooled: Tensor = reduce(
        build_mel("tiny_16k").to(audio.device)(audio.float()), "n (m p) t -> n t m", "mean", m=BANDS
    )
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
