"""One optimizer step: flow-matching loss, gradient accumulation over micro-batches, clipping, AdamW, EMA.

Training and validation share the loss. The effective batch is one step's clips, of all processes together.

B clips at once, N latent tokens, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmaudio.config import TrainConfig
from mmaudio.errors import TrainingError
from mmaudio.finetune.dataset import ClipDataset
from mmaudio.finetune.distributed import Distributed
from mmaudio.finetune.draws import Draws
from mmaudio.finetune.optimizers import learning_rate_at, set_learning_rate
from mmaudio.finetune.precision import autocast, compute_dtype, seeded_dropout
from mmaudio.finetune.state import TrainState
from mmaudio.model.flow_matching import interpolate, mean_squared_error, sample_posterior, velocity_loss
from mmaudio.model.networks import Conditions, MMAudio

TEXT_ALONE = 0.5
"""Share of the base's samples at which the velocity is held without a video."""


class NonFiniteError(TrainingError):
    """A loss or gradient that is not finite; the state is what it was before the step."""


@dataclass(frozen=True)
class StepMetrics:
    """Loss, gradient norm and learning rate of one step."""

    loss: float
    """Mean over the effective batch."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    losses: Tensor  # (B,) of this process's clips
    t: Tensor  # (B,) their flow times


@dataclass(frozen=True)
class HeldSamples:
    """Some of the base's samples, at which the adapted velocity is held to the base's."""

    samples: ClipDataset
    draws: Draws
    weight: float
    """Of each sample's drift in the loss."""

    def split(self, size: int) -> list[HeldSamples]:
        """Parts of at most `size` samples."""
        return [replace(self, draws=draws) for draws in self.draws.split(size)]


GradientAccumulator = Callable[[TrainState, ClipDataset, Draws, TrainConfig, HeldSamples | None], Tensor]
"""Forward and backward pass of one micro-batch: its losses (B,); the gradients are added to the parameters'.

Where samples are held, so are those of their drift.
"""


def sample_latents(network: MMAudio, dataset: ClipDataset, draws: Draws, latent_noise: float = 0.0) -> Tensor:
    """Normalised latents (B, N, C) of the drawn clips, from the posterior.

    `latent_noise` is the standard deviation of additional noise, in units of the normalised latents.
    """
    std = dataset.std[draws.index]
    if latent_noise:
        std = torch.hypot(std, latent_noise * network.latent_std)
    return network.normalize(sample_posterior(dataset.mean[draws.index], std, draws.eps))


def compute_losses(
    network: MMAudio, dataset: ClipDataset, draws: Draws, dtype: torch.dtype, latent_noise: float = 0.0
) -> Tensor:
    """The flow-matching loss of every drawn clip, (B,), with its condition dropout; noise as in `sample_latents`."""
    with autocast(draws.t.device, dtype):
        conditions = draw_conditions(network, dataset, draws)
        latents = sample_latents(network, dataset, draws, latent_noise)
        return velocity_loss(network, latents, conditions, draws.t, draws.noise)


def accumulate_gradients(
    state: TrainState, dataset: ClipDataset, draws: Draws, config: TrainConfig, held: HeldSamples | None = None
) -> Tensor:
    """Run a micro-batch forward and backward: its flow-matching losses (B,), detached.

    The gradients, weighted by the micro-batch's share of the effective batch, are added to the parameters'. Held
    samples go through the network together with the clips.
    """
    dtype = compute_dtype(dataset.mean.device, config.amp)
    if held is None:
        losses = compute_losses(state.network, dataset, draws, dtype, config.latent_noise)
        drift = losses.new_zeros(())
    else:
        losses, drift = compute_losses_and_drift(state, dataset, draws, held, dtype, config.latent_noise)
        drift = held.weight * drift.sum()
    torch.autograd.backward(losses.sum() / config.effective_batch_size + drift)
    return losses.detach()


def compute_losses_and_drift(
    state: TrainState,
    dataset: ClipDataset,
    draws: Draws,
    held: HeldSamples,
    dtype: torch.dtype,
    latent_noise: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The clips' losses (B,), as `compute_losses`, and the held samples' drift, as `compute_velocity_drift`."""
    network = state.network
    base_velocity = predict_base_velocity(state, held.samples, held.draws, dtype)
    with autocast(draws.t.device, dtype):
        latents = sample_latents(network, dataset, draws, latent_noise)
        held_latents = sample_latents(network, held.samples, held.draws)
        all_draws = (draws, held.draws)
        x_t = [interpolate(some.noise, x, some.t) for some, x in zip(all_draws, (latents, held_latents), strict=True)]
        conditions = draw_conditions(network, dataset, draws).cat(draw_conditions(network, held.samples, held.draws))
        velocity = network.predict_velocity(torch.cat(x_t), torch.cat([draws.t, held.draws.t]), conditions)
    losses = mean_squared_error(velocity[: len(draws)], latents - draws.noise)
    return losses, mean_squared_error(velocity[len(draws) :], base_velocity)


def draw_conditions(network: MMAudio, dataset: ClipDataset, draws: Draws) -> Conditions:
    """The conditions of the drawn clips, some of them dropped."""
    return dataset.conditions(network, draws.index, draws.no_video, draws.no_text)


def compute_velocity_drift(state: TrainState, samples: ClipDataset, draws: Draws, dtype: torch.dtype) -> Tensor:
    """Squared distance of the adapted velocity from the base model's, with the draws' conditions: (B,)."""
    base_velocity = predict_base_velocity(state, samples, draws, dtype)
    return mean_squared_error(_predict_velocity(state.network, samples, draws, dtype), base_velocity)


def accumulate_drift_gradients(state: TrainState, held: HeldSamples, config: TrainConfig) -> None:
    """Add the gradients of the held samples' drift alone."""
    dtype = compute_dtype(held.samples.mean.device, config.amp)
    drift = compute_velocity_drift(state, held.samples, held.draws, dtype)
    torch.autograd.backward(held.weight * drift.sum())


@torch.no_grad()
def predict_base_velocity(state: TrainState, samples: ClipDataset, draws: Draws, dtype: torch.dtype) -> Tensor:
    """The base model's velocity at the drawn samples, (B, N, C)."""
    with state.without_adapter():
        return _predict_velocity(state.network, samples, draws, dtype)


def _predict_velocity(network: MMAudio, samples: ClipDataset, draws: Draws, dtype: torch.dtype) -> Tensor:
    with autocast(draws.t.device, dtype):  # a context of its own: autocast caches the cast weights until it ends
        x_t = interpolate(draws.noise, sample_latents(network, samples, draws), draws.t)
        return network.predict_velocity(x_t, draws.t, draw_conditions(network, samples, draws))


def train_step(
    state: TrainState,
    dataset: ClipDataset,
    config: TrainConfig,
    distributed: Distributed,
    accumulate: GradientAccumulator = accumulate_gradients,
    base_samples: ClipDataset | None = None,
) -> StepMetrics:
    """Advance the adapter by one step; NonFiniteError, with the state as it was, where a value is not finite.

    With `base_samples` the adapted velocity is held to the base's at some of them. Where memory runs out, the step is
    computed again in micro-batches of half the size.
    """
    if not state.model.training:  # train() visits every module, which takes milliseconds
        state.model.train()
    total, device = config.effective_batch_size, dataset.mean.device
    draw_arguments = (total, config.drop_conditions, config.caption_dropout_prob, config.early_times)
    undo_points = [source.undo_point() for source in state.draw_sources()]
    step_draws = state.draws.draw(*draw_arguments)
    local_draws = step_draws.select(distributed.shard(total)).to(device)
    held = None
    if base_samples is not None and state.base_draws is not None:
        base_draws = state.base_draws.draw(config.base_samples_per_step, TEXT_ALONE, 0.0, config.early_times)
        local_base_draws = base_draws.select(distributed.uneven_shard(len(base_draws))).to(device)
        held = HeldSamples(base_samples, local_base_draws, config.preserve_base / len(base_draws))

    def run_passes(size: int) -> Tensor:
        """Gradients of all clips in micro-batches of `size`, and of the held samples; the clips' losses (B,)."""
        with seeded_dropout(step_draws.dropout_seed + distributed.rank, device):
            return accumulate_passes(state, dataset, local_draws, held, config, accumulate, size)

    losses = run_with_less_memory(run_passes, state, min(state.micro_batch or config.batch_size, len(local_draws)))
    mean_loss = losses.sum() / total
    grad_norm = reduce_and_clip_gradients(state, mean_loss, config, distributed)
    if device.type == "cuda":
        state.draws.prefetch(*draw_arguments)
    loss, norm = torch.stack([mean_loss, grad_norm]).tolist()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        state.optimizer.zero_grad()
        for undo in undo_points:
            undo()
        raise non_finite_error(loss, norm, state.step)
    rate = optimizer_step(state, config)
    return StepMetrics(loss, norm, rate, losses, local_draws.t)


def accumulate_passes(
    state: TrainState,
    dataset: ClipDataset,
    draws: Draws,
    held: HeldSamples | None,
    config: TrainConfig,
    accumulate: GradientAccumulator,
    size: int,
) -> Tensor:
    """Gradients of a step's clips in micro-batches of `size`, and of its held samples; the clips' losses (B,).

    A pass of few samples takes nearly as long as one of many, so each micro-batch takes a part of the held samples with
    it, unless that is more than half its own size.
    """
    micro_batches = list(draws.split(size))
    num_held = len(held.draws) if held else 0
    part_size = -(-num_held // len(micro_batches))
    parts: list[HeldSamples | None] = []
    if held is not None and 0 < part_size <= size // 2:
        parts += held.split(part_size)
    parts += [None] * (len(micro_batches) - len(parts))
    pairs = zip(micro_batches, parts, strict=True)
    losses = [accumulate(state, dataset, micro_draws, config, micro_held) for micro_draws, micro_held in pairs]
    if held is not None and part_size > size // 2:
        for micro_held in held.split(size):
            accumulate_drift_gradients(state, micro_held, config)
    return torch.cat(losses)


def run_with_less_memory(run_passes: Callable[[int], Tensor], state: TrainState, size: int) -> Tensor:
    """The losses of a step's passes of `size` clips, or of half as many wherever memory runs out."""
    while True:
        try:
            return run_passes(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        state.halve_micro_batch(size)  # out of the block, which holds the failed pass's memory
        size = state.micro_batch


def reduce_and_clip_gradients(
    state: TrainState, mean_loss: Tensor, config: TrainConfig, distributed: Distributed
) -> Tensor:
    """Sum the gradients and `mean_loss`, in place, over the processes and clip; the norm before clipping: ()."""
    parameters = list(state.trainable_parameters().values())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    distributed.all_reduce_sum([mean_loss, *gradients])
    return nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)


def optimizer_step(state: TrainState, config: TrainConfig) -> float:
    """Update parameters and EMA from the gradients, which are then cleared; the learning rate that was used."""
    rate = learning_rate_at(state.step, config)
    set_learning_rate(state.optimizer, rate)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    state.update_ema(config.ema_decay)
    return rate


def non_finite_error(loss: float, grad_norm: float, step: int) -> NonFiniteError:
    """The error that says which step's loss or gradient norm was not finite, and what to try."""
    return NonFiniteError(
        f"step {step + 1}: loss {loss:g}, gradient norm {grad_norm:g}; stopped before the weights changed, and the "
        "state before that step is saved. Try amp=false, or in a new folder preset=stable or a lower learning_rate"
    )


def average_by_time(values: Tensor, t: Tensor, num_bins: int = 4) -> dict[str, float]:
    """Mean of the values (B,) in equal bins of the flow time, for the bins that occur: `0.25-0.50`: ..."""
    bin_index = (t * num_bins).long().clamp(0, num_bins - 1)
    return {
        f"{i / num_bins:.2f}-{(i + 1) / num_bins:.2f}": float(values[bin_index == i].mean())
        for i in range(num_bins)
        if (bin_index == i).any()
    }
