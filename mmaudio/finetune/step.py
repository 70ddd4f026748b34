"""One optimizer step, and the loss that training and validation share.

B clips at once, N latent tokens, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmaudio.config import TrainConfig
from mmaudio.errors import TrainingError
from mmaudio.finetune.dataset import Material
from mmaudio.finetune.distributed import Team
from mmaudio.finetune.optimizers import learning_rate, set_rate
from mmaudio.finetune.precision import autocast, compute_dtype, seeded
from mmaudio.finetune.state import Draws, TrainState
from mmaudio.model.flow_matching import interpolate, sample_posterior, velocity_loss
from mmaudio.model.networks import MMAudio


class NotFinite(TrainingError):
    """A loss or gradient that is not finite; the state is what it was before the step."""


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured."""

    loss: float
    """Mean over the step's clips."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    losses: Tensor  # (B,) of this process's clips
    t: Tensor  # (B,) their times


def latents(network: MMAudio, clips: Material, draws: Draws, widened: float = 0.0) -> Tensor:
    """Normalised latents (B, N, C) of the drawn clips, from the posterior; `widened` adds noise of that deviation."""
    std = clips.std[draws.index]
    if widened:
        std = torch.hypot(std, widened * network.latent_std)
    return network.normalize(sample_posterior(clips.mean[draws.index], std, draws.eps))


def losses(network: MMAudio, clips: Material, draws: Draws, dtype: torch.dtype, widened: float = 0.0) -> Tensor:
    """The flow-matching loss of every drawn clip, (B,), conditions dropped as drawn; `widened` as in `latents`."""
    with autocast(draws.t.device, dtype):
        conditions = clips.conditions(network, draws.index, draws.no_video, draws.no_text)
        return velocity_loss(network, latents(network, clips, draws, widened), conditions, draws.t, draws.noise)


def drift(state: TrainState, clips: Material, draws: Draws, dtype: torch.dtype) -> Tensor:
    """Squared distance of the adapted velocity from the base model's, both without conditions: (B,)."""
    network, nothing = state.network, torch.ones_like(draws.no_video)
    point = interpolate(draws.noise, latents(network, clips, draws), draws.t)

    def velocity() -> Tensor:
        with autocast(draws.t.device, dtype):  # each its own: it keeps what it has cast of trained weights to its end
            return network.predict_velocity(point, draws.t, clips.conditions(network, draws.index, nothing, nothing))

    with torch.no_grad(), state.without_adapter():
        base = velocity()
    return (velocity().float() - base.float()).square().mean((1, 2))


Batch = Callable[[TrainState, Material, Draws, TrainConfig], Tensor]
"""Losses (B,) of drawn clips that go through the network at once, whose gradients are added to the parameters'."""


def batch_losses(state: TrainState, clips: Material, rows: Draws, config: TrainConfig) -> Tensor:
    """A batch's flow-matching losses (B,); the gradient of their share of the step is added to the parameters'."""
    dtype = compute_dtype(clips.mean.device, config.amp)
    found = losses(state.network, clips, rows, dtype, config.latent_noise)
    summed = found.sum()
    if config.preserve_base:
        summed = summed + config.preserve_base * drift(state, clips, rows, dtype).sum()
    torch.autograd.backward(summed / config.effective_batch)
    return found.detach()


def train_step(
    state: TrainState, clips: Material, config: TrainConfig, team: Team, batch: Batch = batch_losses
) -> StepMetrics:
    """Advance the adapter by one step; NotFinite, with the state as it was, where a value is not finite."""
    if not state.model.training:  # to say so to every module takes milliseconds
        state.model.train()
    device, total = clips.mean.device, config.effective_batch
    undo = state.before_draw()
    drawn = state.draw(total, config.drop_conditions, config.caption_dropout)
    own = drawn.rows(team.share(total)).to(device)
    with seeded(drawn.dropout_seed + team.rank, device):
        parts = [batch(state, clips, rows, config) for rows in own.split(config.batch_size)]
    found = torch.cat(parts)
    weights = list(state.trained().values())
    mean = found.sum() / total
    team.sum([mean, *(weight.grad for weight in weights if weight.grad is not None)])
    norm = nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
    if device.type == "cuda":
        state.draw_ahead(total, config.drop_conditions, config.caption_dropout)
    loss, length = torch.stack([mean, norm]).tolist()
    if not (math.isfinite(loss) and math.isfinite(length)):
        state.optimizer.zero_grad()
        undo()
        raise not_finite(loss, length, state.step)
    rate = learning_rate(state.step, config)
    set_rate(state.optimizer, rate)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    state.update_average(config.ema_decay)
    return StepMetrics(loss, length, rate, found, own.t)


def not_finite(loss: float, norm: float, step: int) -> NotFinite:
    """The error that says which step's loss or gradient norm was not finite, and what to try."""
    return NotFinite(
        f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}; stopped before the weights changed, and the state "
        "before that step is saved. Try amp=false, or in a new folder preset=stable or a lower learning_rate"
    )


def in_bins(values: Tensor, t: Tensor, bins: int = 4) -> dict[str, float]:
    """Mean of the values (B,) by quarter of the flow's time, for the quarters that occur: `0.25-0.50`: ..."""
    number = (t * bins).long().clamp(0, bins - 1)
    return {
        f"{i / bins:.2f}-{(i + 1) / bins:.2f}": float(values[number == i].mean())
        for i in range(bins)
        if (number == i).any()
    }
