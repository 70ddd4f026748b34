"""One optimizer step, and the loss that training and validation share.

B clips at once, N latent tokens, C latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmaudio.config import TrainConfig
from mmaudio.errors import TrainingError
from mmaudio.finetune.dataset import Material
from mmaudio.finetune.precision import autocast, compute_dtype, seeded
from mmaudio.finetune.state import Draws, TrainState, learning_rate
from mmaudio.finetune.team import Team
from mmaudio.model.flow_matching import sample_posterior, velocity_loss
from mmaudio.model.networks import MMAudio


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


def losses(network: MMAudio, clips: Material, draws: Draws, dtype: torch.dtype) -> Tensor:
    """The flow-matching loss of every drawn clip, (B,): latents from the posterior, normalised; conditions dropped."""
    with autocast(draws.t.device, dtype):
        conditions = clips.conditions(network, draws.index, draws.no_video, draws.no_text)
        sampled = sample_posterior(clips.mean[draws.index], clips.std[draws.index], draws.eps)
        return velocity_loss(network, network.normalize(sampled), conditions, draws.t, draws.noise)


def train_step(state: TrainState, clips: Material, config: TrainConfig, team: Team) -> StepMetrics:
    """Advance the adapter by one step; TrainingError, with the weights as they were, where a value is not finite."""
    state.model.train()
    device, total = clips.mean.device, config.effective_batch
    drawn = state.draw(total, config.drop_conditions)
    own = drawn.rows(team.share(total)).to(device)
    dtype, parts = compute_dtype(device, config.amp), []
    with seeded(drawn.dropout_seed + team.rank, device):
        for start in range(0, len(own.t), config.batch_size):
            part = losses(state.network, clips, own.rows(slice(start, start + config.batch_size)), dtype)
            torch.autograd.backward(part.sum() / total)
            parts.append(part.detach())
    found, weights = torch.cat(parts), list(state.trained().values())
    mean = found.sum() / total
    team.sum([mean, *(weight.grad for weight in weights if weight.grad is not None)])
    norm = nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
    check_finite(float(mean), float(norm), state.step)
    rate = learning_rate(state.step, config)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    state.update_average(config.ema_decay)
    return StepMetrics(float(mean), float(norm), rate, found, own.t)


def check_finite(loss: float, norm: float, step: int) -> None:
    """TrainingError that says which step and what to try, for a loss or gradient norm that is not finite."""
    values = torch.tensor([loss, norm])
    if not values.isfinite().all():
        raise TrainingError(
            f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}; stopped before the weights changed. "
            "Try preset=stable, a lower learning_rate or amp=false; the last good state is kept"
        )


def in_bins(values: Tensor, t: Tensor, bins: int = 4) -> dict[str, float]:
    """Mean of the values (B,) by quarter of the flow's time, for the quarters that occur: `0.25-0.50`: ..."""
    number = (t * bins).long().clamp(0, bins - 1)
    return {
        f"{i / bins:.2f}-{(i + 1) / bins:.2f}": float(values[number == i].mean())
        for i in range(bins)
        if (number == i).any()
    }
