"""The state of a training run: adapter, optimizer, EMA, draws, validation history; its `state_dict` is resuming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmaudio.config import TrainConfig
from mmaudio.errors import TrainingError
from mmaudio.finetune.draws import DrawSource, EpochSampler
from mmaudio.finetune.early_stopping import ValidationHistory
from mmaudio.finetune.ema import copy_values, swap_values, update_ema
from mmaudio.finetune.optimizers import build_optimizer
from mmaudio.lora import base_values, pissa
from mmaudio.lora.adapter import adapted_network, add_lora
from mmaudio.lora.adapter_start import load_start
from mmaudio.lora.checkpoint import AdapterFile
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.lora.rank_growth import RankGrowth, grow_rank
from mmaudio.model.networks import MMAudio


@dataclass
class TrainState:
    """Everything that changes while an adapter trains."""

    model: nn.Module
    """The network as `add_lora` returns it."""
    network: MMAudio
    """The network inside `model`, the one to call."""
    optimizer: torch.optim.Optimizer
    draws: DrawSource
    ema: dict[str, Tensor] | None
    """Exponential moving average of the trainable parameters, by name; None where it is off."""
    lora: LoRAConfig
    """The adapter's settings, of all phases."""
    history: ValidationHistory = field(default_factory=ValidationHistory)
    step: int = 0
    """Optimizer steps done."""
    phase: int = 0
    """Index of the phase whose rank the adapter has."""
    micro_batch: int = 0
    """Clips that go through the network together; 0: `batch_size`."""
    compiled: bool = False
    """Whether the last steps ran compiled blocks."""
    base_draws: DrawSource | None = None
    """Draws of the base's samples; None where the base is not preserved."""
    _trainable: dict[str, nn.Parameter] = field(default_factory=dict, repr=False)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients, by name; cached for each phase, as the search takes milliseconds."""
        if not self._trainable:
            named = self.model.named_parameters()
            self._trainable = {name: weight for name, weight in named if weight.requires_grad}
        return self._trainable

    @property
    def targets(self) -> list[str]:
        """Names of the adapted layers, in the network's order; none where all weights are trained."""
        return list(lora_layers(self.model))

    def draw_sources(self) -> list[DrawSource]:
        """The draws of the clips and, if there are any, of the base's samples."""
        return [source for source in (self.draws, self.base_draws) if source is not None]

    def halve_micro_batch(self, size: int) -> None:
        """Drop the gradients of a pass of `size` clips that ran out of memory; the next passes are half as large."""
        self.optimizer.zero_grad()
        self.micro_batch = -(-size // 2)
        if self.network.latent_mean.device.type == "cuda":
            torch.cuda.empty_cache()

    def update_ema(self, decay: float) -> None:
        """Move the EMA toward the parameters, where there is one."""
        if self.ema is not None:
            update_ema(self.ema, self.trainable_parameters(), decay, self.step)

    @contextmanager
    def use_ema(self, enabled: bool = True) -> Iterator[None]:
        """Run the block with the EMA in place of the parameters, where there is one and `enabled` is true."""
        if self.ema is None or not enabled:
            yield
            return
        with swap_values(self.trainable_parameters(), self.ema):
            yield

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Run the block with the base model's outputs."""
        with base_values.without_adapter(self.model):
            yield

    @property
    def phase_is_over(self) -> bool:
        """True where the next step belongs to a later phase."""
        return self.lora.phase_at(self.step) > self.phase

    def enter_phase(self, phase: int, generator: torch.Generator | None = None) -> None:
        """Grow the adapter to the rank of a later phase; its output and the old entries' optimizer state stay.

        New rows of A are drawn from `generator`, zero without one.
        """
        self.draws.discard_prefetched()
        old_parameters = self.trainable_parameters()
        growths = grow_rank(self.model, self.lora.in_phase(phase), self.targets, generator)
        self._trainable = {}
        parameters = self.trainable_parameters()
        replacements = {id(old_parameters[name]): parameters[name] for name in growths}
        for group in self.optimizer.param_groups:
            group["params"] = [replacements.get(id(parameter), parameter) for parameter in group["params"]]
        for name, growth in growths.items():
            moments = self.optimizer.state.pop(old_parameters[name], {})
            self.optimizer.state[parameters[name]] = _grow_moments(moments, growth)
            if self.ema is not None:
                self.ema[name] = growth.apply(self.ema[name])
        self.phase = phase

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, without the base weights."""
        self.draws.discard_prefetched()
        return {
            "step": self.step,
            "phase": self.phase,
            "micro_batch": self.micro_batch,
            "compiled": self.compiled,
            "taken_out": base_values.get(self.model).pissa_factors,
            "trained": {name: parameter.detach() for name, parameter in self.trainable_parameters().items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.ema,
            "generator": self.draws.generator.get_state(),
            "order": self.draws.sampler.state_dict(),
            "progress": self.history.state_dict(),
            **({} if self.base_draws is None else {"base_draws": self.base_draws.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; TrainingError where the trainable parameters are not the same."""
        self.draws.discard_prefetched()
        if state.get("phase", 0) > self.phase:
            self.enter_phase(state["phase"])
        parameters = self.trainable_parameters()
        mismatched_names = sorted(set(parameters) ^ set(state["trained"]))
        if mismatched_names:
            raise TrainingError(f"the saved state is of another adapter ({', '.join(mismatched_names[:3])}, ...)")
        pissa.subtract_factors(self.model, state.get("taken_out", {}))
        copy_values(parameters, state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            averages = state["average"] or state["trained"]
            self.ema = {name: value.to(parameters[name].device, copy=True) for name, value in averages.items()}
        if self.base_draws is not None:
            self.base_draws.load_state_dict(state["base_draws"])
        self.draws.generator.set_state(state["generator"])
        self.draws.sampler.load_state_dict(state["order"])
        self.history = ValidationHistory.from_state_dict(state["progress"])
        self.step, self.micro_batch = state["step"], state.get("micro_batch", 0)
        self.compiled = state.get("compiled", False)


def _grow_moments(moments: dict[str, Any], growth: RankGrowth) -> dict[str, Any]:
    """The AdamW state of a parameter that has grown."""
    powers = {"exp_avg": 1, "exp_avg_sq": 2}
    return {
        name: growth.apply_to_moment(value, powers[name]) if name in powers else value
        for name, value in moments.items()
    }


def new_state(
    network: MMAudio,
    config: TrainConfig,
    num_clips: int,
    num_base_samples: int = 0,
    initial: AdapterFile | None = None,
) -> TrainState:
    """The state at step 0: a fresh adapter on the loaded network, or one that computes what `initial` does.

    ConfigError as `add_lora` raises it.
    """
    adapter_generator, *generators = (torch.Generator().manual_seed(config.seed + offset) for offset in range(5))
    model = add_lora(network, config.lora, adapter_generator)
    if initial is not None:
        load_start(model, initial)
    inner = adapted_network(model)
    inner.gradient_checkpointing = config.gradient_checkpointing
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    latent_shape = (inner.lengths.latent_tokens, inner.spec.latent_dim)
    draws = DrawSource(latent_shape, EpochSampler(num_clips, generators[0]), generators[1])
    state = TrainState(model, inner, build_optimizer(trainable, config), draws, None, config.lora)
    if num_base_samples:
        state.base_draws = DrawSource(latent_shape, EpochSampler(num_base_samples, generators[2]), generators[3])
    if config.ema_decay:
        state.ema = {name: value.detach().clone() for name, value in state.trainable_parameters().items()}
    return state
