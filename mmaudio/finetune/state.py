"""The state of a training run: one object, and its `state_dict` is resuming.

Everything random comes from the two generators in it, drawn on the CPU for the whole step, so that neither the device
nor the number of processes changes what is drawn.

E clips of one optimizer step, N latent tokens, C latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from mmaudio.config import TrainConfig
from mmaudio.errors import TrainingError
from mmaudio.model.flow_matching import logit_normal_times
from mmaudio.model.lora import adapted_network, add_lora
from mmaudio.model.networks import MMAudio

BETAS = (0.9, 0.95)
FINAL_RATE = 0.03
"""Where cosine and linear schedules end, as a share of the learning rate."""


@dataclass(frozen=True)
class Draws:
    """Everything random of one step."""

    index: Tensor  # (E,) clips
    eps: Tensor  # (E, N, C) for the posterior
    noise: Tensor  # (E, N, C) the path's start
    t: Tensor  # (E,) flow times
    no_video: Tensor  # (E,) bool
    no_text: Tensor  # (E,) bool
    dropout_seed: int

    def map(self, change: Callable[[Tensor], Tensor]) -> Draws:
        """The same with `change` applied to every tensor."""
        tensors = (self.index, self.eps, self.noise, self.t, self.no_video, self.no_text)
        index, eps, noise, t, no_video, no_text = map(change, tensors)
        return Draws(index, eps, noise, t, no_video, no_text, self.dropout_seed)

    def rows(self, part: slice) -> Draws:
        """The draws of some of the clips."""
        return self.map(lambda tensor: tensor[part])

    def to(self, device: torch.device) -> Draws:
        """The same on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass
class Order:
    """Epochs without replacement: every clip once in a random order, then again in another."""

    clips: int
    generator: torch.Generator
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    position: int = 0

    def take(self, count: int) -> Tensor:
        """The next `count` clips, across epochs where need be: (count,), int64."""
        taken: list[Tensor] = []
        while count:
            if self.position == len(self.order):
                self.order, self.position = torch.randperm(self.clips, generator=self.generator), 0
            taken.append(self.order[self.position : self.position + count])
            self.position += len(taken[-1])
            count -= len(taken[-1])
        return torch.cat(taken)


@dataclass
class Progress:
    """How validation has gone."""

    best: float = math.inf
    """Lowest validation loss."""
    best_step: int = -1
    reference: float = math.inf
    """The loss that counted as the last improvement."""
    stale: int = 0
    """Evaluations since then."""
    evaluated: int = -1
    """Step of the last evaluation."""
    history: list[tuple[int, float]] = field(default_factory=list)
    """Step and validation loss of every evaluation."""

    def take_in(self, step: int, loss: float, min_delta: float) -> bool:
        """Note an evaluation; whether it is the best so far."""
        self.history.append((step, loss))
        self.evaluated = step
        improved = loss < self.reference - min_delta or math.isinf(self.reference)
        self.reference, self.stale = (loss, 0) if improved else (self.reference, self.stale + 1)
        if loss < self.best:
            self.best, self.best_step = loss, step
        return self.best_step == step


@dataclass
class TrainState:
    """Adapter, optimizer, running average, generators, position in the data, progress."""

    model: PeftModel
    network: MMAudio
    """The network inside `model`, the one to call."""
    optimizer: torch.optim.Optimizer
    order: Order
    generator: torch.Generator
    average: dict[str, Tensor] | None
    """Running average of the trained parameters, by name; None where it is off."""
    progress: Progress = field(default_factory=Progress)
    step: int = 0
    """Optimizer steps done."""

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    @property
    def targets(self) -> list[str]:
        """Names of the adapted layers, in the network's order (peft's own configuration abbreviates them)."""
        return list(self.model.base_model.targeted_module_names)

    def draw(self, count: int, drop: float) -> Draws:
        """The random part of the next step of `count` clips, dropping conditions with probability `drop`."""
        shape = (count, self.network.lengths.latent, self.network.spec.latent_dim)
        eps, noise = (torch.randn(shape, generator=self.generator) for _ in range(2))
        no_video, no_text = torch.rand(2, count, generator=self.generator) < drop
        return Draws(
            index=self.order.take(count),
            eps=eps,
            noise=noise,
            t=logit_normal_times(count, self.generator),
            no_video=no_video,
            no_text=no_text,
            dropout_seed=int(torch.randint(2**62, (), generator=self.generator)),
        )

    def update_average(self, decay: float) -> None:
        """Move the running average toward the parameters; early on it forgets faster, so that it starts unbiased."""
        if self.average is None:
            return
        rate = 1.0 - min(decay, (1 + self.step) / (10 + self.step))
        for name, weight in self.trained().items():
            self.average[name].lerp_(weight.detach(), rate)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model computes with the running average, where there is one."""
        if self.average is None:
            yield
            return
        trained = self.trained()
        own = {name: weight.detach().clone() for name, weight in trained.items()}
        _assign(trained, self.average)
        try:
            yield
        finally:
            _assign(trained, own)

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values, the base weights left out."""
        return {
            "step": self.step,
            "trained": {name: weight.detach() for name, weight in self.trained().items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "generator": self.generator.get_state(),
            "order": {
                "order": self.order.order,
                "position": self.order.position,
                "generator": self.order.generator.get_state(),
            },
            "progress": vars(self.progress).copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave; TrainingError where the trained parameters are not the same."""
        trained = self.trained()
        different = sorted(set(trained) ^ set(state["trained"]))
        if different:
            raise TrainingError(f"the saved state is of another adapter ({', '.join(different[:3])}, ...)")
        _assign(trained, state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            saved = state["average"] or state["trained"]
            self.average = {name: value.to(trained[name].device, copy=True) for name, value in saved.items()}
        self.generator.set_state(state["generator"])
        self.order.order, self.order.position = state["order"]["order"], state["order"]["position"]
        self.order.generator.set_state(state["order"]["generator"])
        self.progress = Progress(**state["progress"])
        self.step = state["step"]


@torch.no_grad()
def _assign(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def new_state(network: MMAudio, config: TrainConfig, clips: int) -> TrainState:
    """The state at step 0: a fresh adapter on the loaded network. ConfigError for a target that matches nothing."""
    generators = [torch.Generator().manual_seed(config.seed + offset) for offset in range(3)]
    model = add_lora(network, config.lora, generators[0])
    inner = adapted_network(model)
    inner.gradient_checkpointing = config.gradient_checkpointing
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=config.learning_rate, betas=BETAS, weight_decay=config.weight_decay, fused=True
    )
    state = TrainState(model, inner, optimizer, Order(clips, generators[1]), generators[2], None)
    if config.ema_decay:
        state.average = {name: weight.detach().clone() for name, weight in state.trained().items()}
    return state


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of optimizer step number `step` (from 0): linear warm-up, then the schedule over what is left."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = min(1.0, max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    falling = {"cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1.0 - done, "constant": 1.0}[config.schedule]
    return config.learning_rate * warm * (FINAL_RATE + (1 - FINAL_RATE) * falling)
