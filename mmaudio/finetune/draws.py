"""Random draws of training steps: clip order, noise, flow times and condition dropout.

Everything is drawn on the CPU for the whole step, so that neither the device nor the number of processes changes what
is drawn.

E clips of one optimizer step (the effective batch), N latent tokens, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmaudio.model.flow_matching import condition_dropout_masks, training_times


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

    def __len__(self) -> int:
        return len(self.t)

    def tensors(self) -> tuple[Tensor, ...]:
        """All but the seed, in the order of the fields."""
        return self.index, self.eps, self.noise, self.t, self.no_video, self.no_text

    def map(self, function: Callable[[Tensor], Tensor]) -> Draws:
        """The same draws with `function` applied to every tensor."""
        index, eps, noise, t, no_video, no_text = map(function, self.tensors())
        return Draws(index, eps, noise, t, no_video, no_text, self.dropout_seed)

    def select(self, selection: slice) -> Draws:
        """The draws of the selected clips."""
        return self.map(lambda tensor: tensor[selection])

    def split(self, batch_size: int) -> Iterator[Draws]:
        """Micro-batches of `batch_size` clips; the last one may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.select(slice(start, start + batch_size))

    def to(self, device: torch.device) -> Draws:
        """The same draws on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


def build_fixed_draws(count: int, latent_shape: torch.Size) -> Draws:
    """Draws that use no random generator, for measuring: the first clip `count` times, at flow time 0.5.

    `latent_shape` is (N, C).
    """
    keep_all, zeros = torch.zeros(count, dtype=torch.bool), torch.zeros(count, *latent_shape)
    index, t = torch.zeros(count, dtype=torch.int64), torch.full((count,), 0.5)
    return Draws(index, zeros, zeros, t, keep_all, keep_all, 0)


@dataclass
class EpochSampler:
    """Clip indices without replacement: every epoch is a new random order of all clips."""

    num_clips: int
    generator: torch.Generator
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    position: int = 0

    def take(self, count: int) -> Tensor:
        """The next `count` clips, across epochs where necessary: (count,), int64."""
        pieces: list[Tensor] = []
        while count:
            if self.position == len(self.order):
                self.order, self.position = torch.randperm(self.num_clips, generator=self.generator), 0
            pieces.append(self.order[self.position : self.position + count])
            self.position += len(pieces[-1])
            count -= len(pieces[-1])
        return torch.cat(pieces)

    def state_dict(self) -> dict[str, Any]:
        """The current epoch's order, the position in it and the generator's state."""
        return {"order": self.order, "position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.order, self.position = state["order"], state["position"]
        self.generator.set_state(state["generator"])


@dataclass(frozen=True)
class _Prefetched:
    """Draws of the next step."""

    draws: Draws
    arguments: tuple[int, float, float, float]
    undo: Callable[[], None]


@dataclass
class DrawSource:
    """The draws of successive steps; the next step's can be prefetched while a GPU computes."""

    latent_shape: tuple[int, int]
    """(N, C)"""
    sampler: EpochSampler
    generator: torch.Generator
    _prefetched: _Prefetched | None = field(default=None, repr=False)

    def draw(self, count: int, p_video: float, p_text: float, early: float = 0.0) -> Draws:
        """Draw the next step of `count` clips; `p_video` and `p_text` are the probabilities of dropping a condition.

        `early` is that of an early flow time, as in `training_times`.
        """
        prefetched, arguments = self._prefetched, (count, p_video, p_text, early)
        if prefetched is not None and prefetched.arguments == arguments:
            self._prefetched = None
            return prefetched.draws
        self.discard_prefetched()
        return self._draw(*arguments)

    def prefetch(self, count: int, p_video: float, p_text: float, early: float = 0.0) -> None:
        """Compute the result of the next `draw` now; `state_dict` still gives the state before it."""
        undo, arguments = self.undo_point(), (count, p_video, p_text, early)
        self._prefetched = _Prefetched(self._draw(*arguments), arguments, undo)

    def discard_prefetched(self) -> None:
        """Undo a prefetch that no `draw` has used."""
        if self._prefetched is not None:
            self._prefetched.undo()

    def undo_point(self) -> Callable[[], None]:
        """A function that undoes all later draws."""
        if self._prefetched is not None:
            return self._prefetched.undo
        generator, sampler = self.generator.get_state(), self.sampler.state_dict()

        def undo() -> None:
            """Go back to before the later draws."""
            self._prefetched = None
            self.generator.set_state(generator)
            self.sampler.load_state_dict(sampler)

        return undo

    def state_dict(self) -> dict[str, Any]:
        """The sampler's and the generator's state, before any prefetched draw."""
        self.discard_prefetched()
        return {"generator": self.generator.get_state(), "order": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.discard_prefetched()
        self.generator.set_state(state["generator"])
        self.sampler.load_state_dict(state["order"])

    def _draw(self, count: int, p_video: float, p_text: float, early: float) -> Draws:
        eps, noise = (torch.randn((count, *self.latent_shape), generator=self.generator) for _ in range(2))
        no_video, no_text = condition_dropout_masks(count, p_video, p_text, self.generator)
        return Draws(
            index=self.sampler.take(count),
            eps=eps,
            noise=noise,
            t=training_times(count, early, self.generator),
            no_video=no_video,
            no_text=no_text,
            dropout_seed=int(torch.randint(2**62, (), generator=self.generator)),
        )
