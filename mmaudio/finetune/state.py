"""The state of a training run: one object, and its `state_dict` is resuming.

Everything random comes from the two generators in it, drawn on the CPU for the whole step, so that neither the device
nor the number of processes changes what is drawn.

E clips of one optimizer step, N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmaudio.config import TrainConfig
from mmaudio.errors import TrainingError
from mmaudio.finetune.early_stopping import Progress
from mmaudio.finetune.optimizers import build_optimizer
from mmaudio.lora import base_values, pissa
from mmaudio.lora.adapter import adapted_network, add_lora
from mmaudio.lora.config import LoRAConfig
from mmaudio.lora.peft_layers import lora_layers
from mmaudio.lora.rank_growth import Growth, grow
from mmaudio.model.flow_matching import logit_normal_times
from mmaudio.model.networks import MMAudio


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

    def tensors(self) -> tuple[Tensor, ...]:
        """All but the seed, in the order of the fields."""
        return self.index, self.eps, self.noise, self.t, self.no_video, self.no_text

    def map(self, change: Callable[[Tensor], Tensor]) -> Draws:
        """The same with `change` applied to every tensor."""
        index, eps, noise, t, no_video, no_text = map(change, self.tensors())
        return Draws(index, eps, noise, t, no_video, no_text, self.dropout_seed)

    def rows(self, part: slice) -> Draws:
        """The draws of some of the clips."""
        return self.map(lambda tensor: tensor[part])

    def split(self, size: int) -> Iterator[Draws]:
        """Parts of `size` clips, the last one of those that are left."""
        for start in range(0, len(self.t), size):
            yield self.rows(slice(start, start + size))

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

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"order": self.order, "position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.order, self.position = state["order"], state["position"]
        self.generator.set_state(state["generator"])


@dataclass(frozen=True)
class _Ahead:
    """Draws of a step that has not come yet."""

    draws: Draws
    wanted: tuple[int, float, float]
    undo: Callable[[], None]


@dataclass
class TrainState:
    """Adapter, optimizer, running average, generators, position in the data, progress."""

    model: nn.Module
    """The network as `add_lora` returns it."""
    network: MMAudio
    """The network inside `model`, the one to call."""
    optimizer: torch.optim.Optimizer
    order: Order
    generator: torch.Generator
    average: dict[str, Tensor] | None
    """Running average of the trained parameters, by name; None where it is off."""
    lora: LoRAConfig
    """The adapter's settings, of all phases."""
    progress: Progress = field(default_factory=Progress)
    step: int = 0
    """Optimizer steps done."""
    phase: int = 0
    """Index of the phase whose rank the adapter has."""
    _trained: dict[str, nn.Parameter] = field(default_factory=dict, repr=False)
    _ahead: _Ahead | None = field(default=None, repr=False)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; looked for once in a phase, as that takes milliseconds."""
        if not self._trained:
            named = self.model.named_parameters()
            self._trained = {name: weight for name, weight in named if weight.requires_grad}
        return self._trained

    @property
    def targets(self) -> list[str]:
        """Names of the adapted layers, in the network's order; none where all weights are trained."""
        return list(lora_layers(self.model))

    def draw(self, count: int, drop_video: float, drop_text: float) -> Draws:
        """The random part of the next step of `count` clips, dropping conditions with these probabilities."""
        ahead, wanted = self._ahead, (count, drop_video, drop_text)
        if ahead is not None and ahead.wanted == wanted:
            self._ahead = None
            return ahead.draws
        self.forget_ahead()
        return self._draw(*wanted)

    def draw_ahead(self, count: int, drop_video: float, drop_text: float) -> None:
        """Make the draws of the next `draw` now, while a GPU computes; the state is still that of before them."""
        undo, wanted = self.before_draw(), (count, drop_video, drop_text)
        self._ahead = _Ahead(self._draw(*wanted), wanted, undo)

    def forget_ahead(self) -> None:
        """Take back what was drawn ahead."""
        if self._ahead is not None:
            self._ahead.undo()

    def _draw(self, count: int, drop_video: float, drop_text: float) -> Draws:
        shape = (count, self.network.lengths.latent, self.network.spec.latent_dim)
        eps, noise = (torch.randn(shape, generator=self.generator) for _ in range(2))
        no_video, no_text = torch.rand(2, count, generator=self.generator) < torch.tensor([[drop_video], [drop_text]])
        return Draws(
            index=self.order.take(count),
            eps=eps,
            noise=noise,
            t=logit_normal_times(count, self.generator),
            no_video=no_video,
            no_text=no_text,
            dropout_seed=int(torch.randint(2**62, (), generator=self.generator)),
        )

    def before_draw(self) -> Callable[[], None]:
        """A function that undoes the draws made since."""
        if self._ahead is not None:
            return self._ahead.undo
        generator, order = self.generator.get_state(), self.order.state_dict()

        def undo() -> None:
            self._ahead = None
            self.generator.set_state(generator)
            self.order.load_state_dict(order)

        return undo

    def update_average(self, decay: float) -> None:
        """Move the running average toward the parameters; early on it forgets faster, so that it starts unbiased."""
        if self.average is None:
            return
        rate, trained = 1.0 - min(decay, (1 + self.step) / (10 + self.step)), self.trained()
        averages, weights = [self.average[name] for name in trained], [weight.detach() for weight in trained.values()]
        torch._foreach_lerp_(averages, weights, rate)

    @contextmanager
    def averaged(self, wanted: bool = True) -> Iterator[None]:
        """Within it the model computes with the running average, where there is one and it is `wanted`."""
        if self.average is None or not wanted:
            yield
            return
        trained = self.trained()
        own = {name: weight.detach().clone() for name, weight in trained.items()}
        _assign(trained, self.average)
        try:
            yield
        finally:
            _assign(trained, own)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Within it the network computes what the base model does."""
        with base_values.without_adapter(self.model):
            yield

    @property
    def phase_is_over(self) -> bool:
        """Whether the next step belongs to a later phase."""
        return self.lora.phase_at(self.step) > self.phase

    def enter_phase(self, number: int, generator: torch.Generator | None = None) -> None:
        """Give the adapter the rank of a later phase; function and optimizer's state of the old part stay.

        New rows of A are drawn from `generator`, zero without one.
        """
        self.forget_ahead()
        before = self.trained()
        grown = grow(self.model, self.lora.in_phase(number), self.targets, generator)
        self._trained = {}
        trained = self.trained()
        for group in self.optimizer.param_groups:
            now = {id(before[name]): trained[name] for name in grown}
            group["params"] = [now.get(id(weight), weight) for weight in group["params"]]
        for name, growth in grown.items():
            moments = self.optimizer.state.pop(before[name], {})
            self.optimizer.state[trained[name]] = _grown_moments(moments, growth)
            if self.average is not None:
                self.average[name] = growth.apply(self.average[name])
        self.phase = number

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values, the base weights left out."""
        self.forget_ahead()
        return {
            "step": self.step,
            "phase": self.phase,
            "taken_out": base_values.of(self.model).taken_out,
            "trained": {name: weight.detach() for name, weight in self.trained().items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "generator": self.generator.get_state(),
            "order": self.order.state_dict(),
            "progress": self.progress.plain(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave; TrainingError where the trained parameters are not the same."""
        self.forget_ahead()
        if state.get("phase", 0) > self.phase:
            self.enter_phase(state["phase"])
        trained = self.trained()
        different = sorted(set(trained) ^ set(state["trained"]))
        if different:
            raise TrainingError(f"the saved state is of another adapter ({', '.join(different[:3])}, ...)")
        pissa.take_out(self.model, state.get("taken_out", {}))
        _assign(trained, state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            saved = state["average"] or state["trained"]
            self.average = {name: value.to(trained[name].device, copy=True) for name, value in saved.items()}
        self.generator.set_state(state["generator"])
        self.order.load_state_dict(state["order"])
        self.progress = Progress.restored(state["progress"])
        self.step = state["step"]


@torch.no_grad()
def _assign(weights: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def _grown_moments(moments: dict[str, Any], growth: Growth) -> dict[str, Any]:
    """AdamW's, of a parameter that has grown."""
    powers = {"exp_avg": 1, "exp_avg_sq": 2}
    return {
        name: growth.apply_to_moment(value, powers[name]) if name in powers else value
        for name, value in moments.items()
    }


def new_state(network: MMAudio, config: TrainConfig, clips: int) -> TrainState:
    """The state at step 0: a fresh adapter on the loaded network. ConfigError as `add_lora` raises it."""
    generators = [torch.Generator().manual_seed(config.seed + offset) for offset in range(3)]
    model = add_lora(network, config.lora, generators[0])
    inner = adapted_network(model)
    inner.gradient_checkpointing = config.gradient_checkpointing
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    optimizer = build_optimizer(trained, config)
    state = TrainState(model, inner, optimizer, Order(clips, generators[1]), generators[2], None, config.lora)
    if config.ema_decay:
        state.average = {name: weight.detach().clone() for name, weight in state.trained().items()}
    return state
