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
from mmaudio.model.flow_matching import interpolate, mean_squared_error, sample_posterior
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
class BaseSamples:
    """Some of the base's samples, at which the adapted velocity is held to the base's."""

    samples: ClipDataset
    draws: Draws
    velocity: Tensor
    """The base model's, (R, N, C)."""
    weight: float
    """Of each sample's drift in the loss."""

    def split(self, size: int) -> list[BaseSamples]:
        """Parts of at most `size` samples."""
        parts = zip(self.draws.split(size), torch.split(self.velocity, size), strict=True)
        return [replace(self, draws=draws, velocity=velocity) for draws, velocity in parts]


GradientAccumulator = Callable[[TrainState, ClipDataset, Draws, TrainConfig], Tensor]
"""Forward and backward pass of one micro-batch: its losses (B,); the gradients are added to the parameters'."""


def sample_latents(network: MMAudio, dataset: ClipDataset, draws: Draws, latent_noise: float = 0.0) -> Tensor:
    """Normalised latents (B, N, C) of the drawn clips, from the posterior.

    `latent_noise` is the standard deviation of additional noise, in units of the normalised latents.
    """
    std = dataset.std[draws.index]
    if latent_noise:
        std = torch.hypot(std, latent_noise * network.latent_std)
    return network.normalize(sample_posterior(dataset.mean[draws.index], std, draws.eps))


def network_inputs(
    network: MMAudio, dataset: ClipDataset, draws: Draws, latent_noise: float = 0.0
) -> tuple[Tensor, Conditions, Tensor]:
    """Noised latents (B, N, C) of the drawn clips, their conditions, some of them dropped, and the true velocity."""
    conditions = dataset.conditions(network, draws.index, draws.no_video, draws.no_text)
    latents = sample_latents(network, dataset, draws, latent_noise)
    return interpolate(draws.noise, latents, draws.t), conditions, latents - draws.noise


def compute_losses(
    network: MMAudio, dataset: ClipDataset, draws: Draws, dtype: torch.dtype, latent_noise: float = 0.0
) -> Tensor:
    """The flow-matching loss of every drawn clip, (B,), with its condition dropout; noise as in `sample_latents`."""
    with autocast(draws.t.device, dtype):
        x_t, conditions, velocity = network_inputs(network, dataset, draws, latent_noise)
        return mean_squared_error(network.predict_velocity(x_t, draws.t, conditions), velocity)


def compute_losses_and_drift(
    network: MMAudio,
    dataset: ClipDataset,
    draws: Draws,
    base: BaseSamples,
    dtype: torch.dtype,
    latent_noise: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The clips' losses (B,) and the drift of the base's samples (R,), computed together."""
    with autocast(draws.t.device, dtype):
        x_t, conditions, velocity = network_inputs(network, dataset, draws, latent_noise)
        base_x_t, base_conditions, _ = network_inputs(network, base.samples, base.draws)
        t, all_conditions = torch.cat([draws.t, base.draws.t]), conditions.cat(base_conditions)
        predicted = network.predict_velocity(torch.cat([x_t, base_x_t]), t, all_conditions)
    of_clips, of_base = torch.split(predicted, [len(draws), len(base.draws)])
    return mean_squared_error(of_clips, velocity), mean_squared_error(of_base, base.velocity)


@torch.no_grad()
def predict_base_velocity(state: TrainState, samples: ClipDataset, draws: Draws, dtype: torch.dtype) -> Tensor:
    """The base model's velocity at the drawn samples, (B, N, C)."""
    with state.without_adapter():
        return _predict_velocity(state.network, samples, draws, dtype)


def _predict_velocity(network: MMAudio, samples: ClipDataset, draws: Draws, dtype: torch.dtype) -> Tensor:
    with autocast(draws.t.device, dtype):  # a context of its own: autocast caches the cast weights until it ends
        x_t, conditions, _ = network_inputs(network, samples, draws)
        return network.predict_velocity(x_t, draws.t, conditions)


def accumulate_gradients(
    state: TrainState, dataset: ClipDataset, draws: Draws, config: TrainConfig, base: BaseSamples | None = None
) -> Tensor:
    """Run a micro-batch forward and backward: its flow-matching losses (B,), detached.

    The gradients, weighted by the micro-batch's share of the effective batch, are added to the parameters'. With
    samples of the base, which then go through the network together with the clips, so are those of their drift.
    """
    dtype = compute_dtype(dataset.mean.device, config.amp)
    arguments = state.network, dataset, draws
    if base is None:
        losses = compute_losses(*arguments, dtype, config.latent_noise)
        objective = losses.sum() / config.effective_batch_size
    else:
        losses, drift = compute_losses_and_drift(*arguments, base, dtype, config.latent_noise)
        objective = losses.sum() / config.effective_batch_size + base.weight * drift.sum()
    torch.autograd.backward(objective)
    return losses.detach()


def accumulate_drift_gradients(state: TrainState, base: BaseSamples, config: TrainConfig) -> None:
    """Add the gradients of the drift at samples of the base, in a pass of their own."""
    dtype = compute_dtype(base.velocity.device, config.amp)
    drift = mean_squared_error(_predict_velocity(state.network, base.samples, base.draws, dtype), base.velocity)
    torch.autograd.backward(base.weight * drift.sum())


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
    base_draws = None if base_samples is None else draw_base_samples(state, config, distributed)

    def run_passes(size: int) -> Tensor:
        """Gradients of all clips in micro-batches of `size`, and of the base's samples; the clips' losses (B,)."""
        with seeded_dropout(step_draws.dropout_seed + distributed.rank, device):
            base = None
            if base_samples is not None and base_draws is not None:
                base = prepare_base_samples(state, base_samples, base_draws, config, size)
            return accumulate_passes(state, dataset, local_draws, base, config, accumulate, size)

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


def draw_base_samples(state: TrainState, config: TrainConfig, distributed: Distributed) -> Draws | None:
    """This process's draws of the base's samples for a step; None where it has none."""
    if state.base_draws is None:
        return None
    draws = state.base_draws.draw(config.base_samples_per_step, TEXT_ALONE, 0.0, config.early_times)
    local_draws = draws.select(distributed.uneven_shard(len(draws)))
    return local_draws.to(distributed.device) if len(local_draws) else None


def prepare_base_samples(
    state: TrainState, samples: ClipDataset, draws: Draws, config: TrainConfig, size: int
) -> BaseSamples:
    """The drawn samples with the base model's velocity at them, which is computed for `size` at once."""
    dtype = compute_dtype(samples.mean.device, config.amp)
    velocities = [predict_base_velocity(state, samples, some_draws, dtype) for some_draws in draws.split(size)]
    return BaseSamples(samples, draws, torch.cat(velocities), config.preserve_base / config.base_samples_per_step)


def accumulate_passes(
    state: TrainState,
    dataset: ClipDataset,
    draws: Draws,
    base: BaseSamples | None,
    config: TrainConfig,
    accumulate: GradientAccumulator,
    size: int,
) -> Tensor:
    """Gradients of a step's clips in micro-batches of `size`, and of samples of the base; the clips' losses (B,)."""
    micro_batches = list(draws.split(size))
    beside = base_samples_beside(size, len(micro_batches), len(base.draws), config, draws.t.device) if base else 0
    beside_each: list[BaseSamples | None] = list(base.split(beside)) if base and beside else []
    beside_each += [None] * (len(micro_batches) - len(beside_each))
    losses = [
        accumulate_gradients(state, dataset, micro_draws, config, some_base)
        if some_base
        else accumulate(state, dataset, micro_draws, config)
        for micro_draws, some_base in zip(micro_batches, beside_each, strict=True)
    ]
    for some_base in base.split(size) if base and not beside else ():
        accumulate_drift_gradients(state, some_base, config)
    return torch.cat(losses)


def base_samples_beside(
    size: int, num_micro_batches: int, num_samples: int, config: TrainConfig, device: torch.device
) -> int:
    """How many samples of the base go through the network together with a micro-batch of `size` clips; 0: none.

    On a CPU a pass of few samples takes nearly as long as one of many. On a GPU micro-batches are recorded, and
    compiled blocks are compiled for their size.
    """
    number = -(-num_samples // num_micro_batches)
    return number if device.type == "cpu" and not config.compile and number <= size // 2 else 0


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
