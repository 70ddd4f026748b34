"""Training steps on a GPU: nothing in a step waits for the device, and the step is recorded once and replayed.

These models are so small that starting their kernels one by one takes longer than computing them. The first steps are
computed as they are, on a stream of their own (libraries set themselves up in them); then forward, backward, clipping,
optimizers and average are recorded as one CUDA graph, which reads its inputs from fixed tensors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmaudio.errors import TrainingError
from mmaudio.pretraining.muon import Optimizers
from mmaudio.utils.memory import free_memory

if TYPE_CHECKING:
    from mmaudio.pretraining.training_loop import Recipe

CPU = torch.device("cpu")
WARM_UP = 3
"""Steps before the recording."""
Draws = tuple[Tensor, ...]


@dataclass(frozen=True)
class Objective:
    """A loss in two halves: called with a generator it is the loss itself."""

    draw: Callable[[torch.Generator], Draws]
    """What is random in a step, drawn on the CPU, so that it is the same on every device."""
    loss: Callable[..., Tensor]
    """The loss of these on the module's device, of the same operations in every step."""

    def __call__(self, generator: torch.Generator) -> Tensor:
        """The loss where the draws are already on the module's device: the CPU."""
        return self.loss(*self.draw(generator))


def hold(parts: Sequence[Tensor], device: torch.device) -> Tensor | None:
    """The parts as one tensor on a GPU; None on a CPU, whose files are mapped, and where half its memory is too little.

    (n, ...) each -> (sum of n, ...).
    """
    size = sum(part.numel() * part.element_size() for part in parts)
    if device.type == "cpu" or size > free_memory(device) // 2:
        return None
    held = torch.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype, device=device)
    start = 0
    for part in parts:
        held[start : start + len(part)].copy_(part)
        start += len(part)
    return held


class HeldSteps:
    """Steps of `train` whose losses stay on the device until `mean_loss` asks for them."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizers,
        average: dict[str, Tensor],
        objective: Objective,
        recipe: Recipe,
        generator_of: Callable[[int, int], torch.Generator],
    ) -> None:
        """`generator_of(step, part)`; `optimizer` is recordable."""
        self.module, self.optimizer, self.objective, self.recipe = module.train(), optimizer, objective, recipe
        self.generator_of = generator_of
        self.parameters = [value for value in module.parameters() if value.requires_grad]
        self.device = self.parameters[0].device
        values = module.state_dict()
        floating = [name for name, value in values.items() if value.is_floating_point()]
        self.averages, self.values = [average[name] for name in floating], [values[name] for name in floating]
        self.share = torch.zeros((), device=self.device)
        """How far the average moves."""
        self.total = torch.zeros(2, device=self.device)
        """Sums of the losses and the gradient norms since the last look."""
        self.count, self.taken = 0, 0
        self.inputs: list[Draws] = []
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, step: int) -> None:
        """Start step 0, 1, ..."""
        self._fill(step)
        self.optimizer.set_rates(step)
        self.share.fill_(1 - self.recipe.ema * min(1.0, (step + 1) / (step + 10)))
        if self.device.type != "cuda" or not self.recipe.record:
            self._compute()
        elif self.taken < WARM_UP:
            self._warm_up()
        else:
            if self.graph is None:
                self.graph = self._record()
            self.graph.replay()
        self.taken, self.count = self.taken + 1, self.count + 1

    def mean_loss(self, step: int) -> float:
        """The mean loss since the last call; TrainingError where a loss or gradient since then is not finite."""
        loss, norm = self.total.tolist()  # waits for the device
        count, self.count = self.count, 0
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"step {step}, or one of the {count - 1} before it: the loss or the gradient is not finite "
                f"(sums {loss}, {norm}); lower the learning rate"
            )
        self.total.zero_()
        return float(loss / max(1, count))

    def _fill(self, step: int) -> None:
        """Draw the step's random numbers and put them where the step reads them."""
        for part in range(self.recipe.parts):
            draws = self.objective.draw(self.generator_of(step, part))
            if len(self.inputs) <= part:
                self.inputs.append(tuple(torch.empty_like(drawn, device=self.device) for drawn in draws))
            for into, drawn in zip(self.inputs[part], draws, strict=True):
                if not drawn.numel():
                    continue
                # pinned memory is not given out again before its copy is done
                into.copy_(drawn.pin_memory() if into.is_cuda else drawn, non_blocking=True)

    def _compute(self) -> None:
        """One step on the inputs."""
        losses = []
        for inputs in self.inputs:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
                losses.append(self.objective.loss(*inputs))
        loss = torch.stack(losses).mean()
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
            if gradient is not None and gradient.stride() != parameter.stride():  # the fused optimizer wants them alike
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.move()
        with torch.no_grad():
            self.total.add_(torch.stack([loss.detach().float(), norm.float()]))
            away = torch._foreach_sub(self.values, self.averages)
            torch._foreach_mul_(away, self.share)
            torch._foreach_add_(self.averages, away)

    def _warm_up(self) -> None:
        """One step on a stream of its own."""
        own, current = self.stream, torch.cuda.current_stream(self.device)
        assert own is not None
        own.wait_stream(current)
        with torch.cuda.stream(own), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable")  # not recorded yet, and meant so
            self._compute()
        current.wait_stream(own)

    def _record(self) -> torch.cuda.CUDAGraph:
        """The step, recorded but not computed."""
        torch.cuda.synchronize(self.device)
        for parameter in self.parameters:
            parameter.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph):
            self._compute()
        return graph
