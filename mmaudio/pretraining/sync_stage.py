"""Stage 2: the sync encoder, trained alone to predict audio and motion in each of its tokens' 80 ms, then frozen.

Three linear heads, which are not kept, read each token: one predicts the mel spectrogram (its 5 frames, pooled to 20
bands), one whether something is struck or switched in each of the 5 frames, one what moves and how (speed, nearness to
a wall, time to the next and from the last event). The last one is what starts the learning: from the audio alone,
nothing is learned in thousands of steps. On a quarter of every batch the colours are replaced and the mel does not
count, since timing has to come from motion, whatever the object.

B segments of a batch, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmaudio.features.synchformer import Synchformer, build_synchformer
from mmaudio.model.spec import FRAMES_PER_SEGMENT, TOKENS_PER_SEGMENT
from mmaudio.pretraining.objective import CPU, Objective
from mmaudio.pretraining.recipe import Recipe
from mmaudio.pretraining.segment_augmentation import (
    draw_colour_mix,
    flip_segments,
    gather_flipped_segments,
    recolour_,
)
from mmaudio.pretraining.shards import Shard, concatenate_on_gpu
from mmaudio.pretraining.stage_run import StageRun
from mmaudio.pretraining.sync_targets import (
    MEL_FRAMES_PER_TOKEN,
    NUM_BANDS,
    NUM_MOTION_TARGETS,
    compute_motion_targets,
    mark_event_frames,
    pool_mel,
)
from mmaudio.synthetic.scenes import Scene

RECIPE = Recipe(
    steps=7000,
    learning_rate=2e-3,
    muon_learning_rate=1e-2,
    warmup_steps=60,
    ema_decay=0.995,
    micro_batches=1,
    compile=True,
)
BATCH_SIZE = 64
"""Segments of 16 frames."""
SyncBatch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Segments (B, 16, 3, H, W), mel (B, 8, 100), events (B, 8, 5), motion (B, 8, 15), whether colours are true (B,)."""


class SyncTrainer(nn.Module):
    """The encoder with the three heads that read its tokens; the attributes are keys of the checkpoint."""

    def __init__(self, encoder: Synchformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.mel = nn.Linear(encoder.spec.width, MEL_FRAMES_PER_TOKEN * NUM_BANDS)
        self.struck = nn.Linear(encoder.spec.width, MEL_FRAMES_PER_TOKEN)
        self.motion = nn.Linear(encoder.spec.width, NUM_MOTION_TARGETS)

    def forward(self, segments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised frames (B, 16, 3, H, W) -> mel (B, 8, 5 * 20), logits of events (B, 8, 5), motion (B, 8, 15)."""
        features = self.encoder(segments[:, None])[:, 0]
        return self.mel(features), self.struck(features), self.motion(features)


class SyncBatches:
    """Frames and targets of all training clips, on the device that trains, and random batches of them."""

    def __init__(self, shards: Sequence[Shard], scenes: Sequence[Scene], device: torch.device = CPU) -> None:
        self.device = device
        self.frames_by_shard = [shard.frames for shard in shards]
        self.gpu_frames = concatenate_on_gpu(self.frames_by_shard, device)
        """(clips, 200, H, W, 3) uint8, None where they stay in their files."""
        self.mel = torch.cat([pool_mel(shard.audio.to(device)) for shard in shards])  # (clips, 500, 20)
        self.mel_mean, self.mel_std = self.mel.mean((0, 1)), self.mel.std((0, 1))
        events = torch.cat([mark_event_frames(shard.event_times, self.mel.shape[1]) for shard in shards])
        self.events = events.to(device)  # (clips, 500)
        motion = torch.stack([compute_motion_targets(scene) for scene in scenes])  # (clips, 100, 15)
        self.motion = ((motion - motion.mean((0, 1))) / motion.std((0, 1)).clamp(min=1e-6)).to(device)

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The random numbers of a batch, the arguments of `build_batch`."""
        clips = torch.randint(len(self.mel), (batch_size,), generator=generator)
        last_token = (self.frames_by_shard[0].shape[1] - FRAMES_PER_SEGMENT) // 2
        first_tokens = torch.randint(last_token + 1, (batch_size,), generator=generator)
        segments = self.read_segments(clips, first_tokens)
        flip_order = torch.randperm(4, generator=generator)
        return clips, first_tokens, segments, flip_order, *draw_colour_mix(batch_size, generator)

    def read_segments(self, clips: Tensor, first_tokens: Tensor) -> Tensor:
        """The segments (B, 16, H, W, 3) uint8 from the files, empty where the GPU has the frames."""
        if self.gpu_frames is not None:
            return torch.empty(0, dtype=torch.uint8)
        shard_size = len(self.frames_by_shard[0])
        rows = [
            self.frames_by_shard[clip // shard_size][clip % shard_size, 2 * token : 2 * token + FRAMES_PER_SEGMENT]
            for clip, token in zip(clips.tolist(), first_tokens.tolist(), strict=True)
        ]
        return torch.stack(rows)

    def build_batch(
        self,
        clips: Tensor,  # (B,)
        first_tokens: Tensor,  # (B,), tokens that the segments start at
        segments: Tensor,  # (B, 16, H, W, 3), of `read_segments`
        flip_order: Tensor,  # (4,), how each quarter is mirrored
        *colour_mix: Tensor,  # of `draw_colour_mix`
    ) -> SyncBatch:
        """The arguments of `sync_loss`."""
        batch_size, tokens = len(clips), TOKENS_PER_SEGMENT
        if self.device.type == "cpu":
            flipped = flip_segments(segments, flip_order)
        elif self.gpu_frames is None:
            rows = torch.arange(batch_size, device=self.device)
            flipped = gather_flipped_segments(segments, rows, torch.zeros_like(first_tokens), flip_order)
        else:
            flipped = gather_flipped_segments(self.gpu_frames, clips, 2 * first_tokens, flip_order)
        pictures = flipped.float().mul_(1 / 127.5).sub_(1)
        true_colours = batch_size - batch_size // 4
        has_true_colours = torch.arange(batch_size, device=self.device) < true_colours
        recolour_(pictures[true_colours:], *colour_mix)
        pictures = rearrange(pictures, "b t h w c -> b t c h w")
        mel_frames = torch.arange(tokens * MEL_FRAMES_PER_TOKEN, device=self.device)
        mel_frames = first_tokens[:, None] * MEL_FRAMES_PER_TOKEN + mel_frames
        mel = (self.mel[clips[:, None], mel_frames] - self.mel_mean) / self.mel_std
        events = self.events[clips[:, None], mel_frames]
        return (
            pictures,
            rearrange(mel, "b (k f) m -> b k (f m)", k=tokens),
            rearrange(events, "b (k f) -> b k f", k=tokens),
            self.motion[clips[:, None], first_tokens[:, None] + torch.arange(tokens, device=self.device)],
            has_true_colours,
        )


def init_encoder(encoder: Synchformer, generator: torch.Generator) -> None:
    """Weights that respond to motion from the first step on: without this, training does not leave a trivial minimum.

    Linears get variance 1 / inputs. Patch filters are smooth in space, and three quarters of them are differences of
    their two frames, so that a background, which fills most of every patch, does not hide what moves.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_weight, std=module.embed_dim**-0.5, generator=generator)
    weight = encoder.vfeat_extractor.patch_embed_3d.proj.weight  # (D, 3, 2, 16, 16)
    width, channels, frames, side, _ = weight.shape
    coarse = torch.randn(width * channels, frames, side // 4, side // 4, generator=generator)
    smooth = F.interpolate(coarse, side, mode="bilinear").view(weight.shape)
    smooth[width // 4 :, :, 1] = -smooth[width // 4 :, :, 0]
    smooth[: width // 4] *= 0.3
    with torch.no_grad():
        weight.copy_(0.06 * smooth)


def train_sync(shards: Sequence[Shard], scenes: Sequence[Scene], run: StageRun) -> Synchformer:
    """The trained encoder; its trainer's state is in the file."""
    trainer = run.build_seeded(lambda: SyncTrainer(build_synchformer("tiny_16k")))
    init_encoder(trainer.encoder, torch.Generator().manual_seed(run.seed))
    trainer.to(run.device)
    data = SyncBatches(shards, scenes, run.device)
    loss = run.recipe.compile_loss(functools.partial(sync_loss, trainer), run.device)
    objective = Objective(functools.partial(data.draw, BATCH_SIZE), lambda *draws: loss(*data.build_batch(*draws)))
    run.train(trainer, objective)
    return trainer.encoder.eval()


def sync_loss(
    trainer: SyncTrainer,
    pictures: Tensor,  # (B, 16, 3, H, W)
    mel: Tensor,  # (B, 8, 100)
    events: Tensor,  # (B, 8, 5)
    motion: Tensor,  # (B, 8, 15)
    has_true_colours: Tensor,  # (B,)
) -> Tensor:
    """Mean squared mel error where the colours are true, cross-entropy of the events, squared error of the motion."""
    predicted_mel, event_logits, predicted_motion = trainer(pictures)
    mel_errors = (predicted_mel.float() - mel).square().mean((1, 2))
    mel_error = (mel_errors * has_true_colours).sum() / has_true_colours.sum()
    motion_error = (predicted_motion.float() - motion).square().mean()
    event_error = F.binary_cross_entropy_with_logits(event_logits.float(), events)
    total: Tensor = mel_error + 2 * event_error + motion_error
    return total
