"""Training steps on a CPU: a thread computes each micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from mmaudio.errors import TrainingError
from mmaudio.pretraining.muon import MuonAdamW
from mmaudio.pretraining.recipe import Recipe

Gradients = tuple[Tensor | None, ...]


class CpuSteps:
    """Optimizer steps whose losses are checked at once."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: MuonAdamW,
        ema: dict[str, Tensor],
        loss_of: Callable[[torch.Generator], Tensor],
        recipe: Recipe,
        generator_for: Callable[[int, int], torch.Generator],
    ) -> None:
        """`generator_for(step, micro_batch)` gives the random numbers of `loss_of`."""
        self.module, self.optimizer, self.ema = module, optimizer, ema
        self.loss_of, self.recipe, self.generator_for = loss_of, recipe, generator_for
        self.parameters = [value for value in module.parameters() if value.requires_grad]
        self.thread_pool, self.num_threads = ThreadPoolExecutor(recipe.micro_batches), torch.get_num_threads()
        self.total_loss, self.steps_since_mean = 0.0, 0

    def run(self, step: int) -> None:
        """Compute step 0, 1, ...; TrainingError where its loss or gradient is not finite."""
        self.module.train()
        loss, gradients = self._compute_gradients(step)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(f"step {step}: loss {loss}, gradient norm {grad_norm}; lower the learning rate")
        self.optimizer.step(step)
        self._update_ema(self.recipe.ema_decay_at(step))
        self.total_loss, self.steps_since_mean = self.total_loss + loss, self.steps_since_mean + 1

    def mean_loss(self, step: int) -> float:
        """The mean loss since the last call, at the end of that step."""
        total, count, self.total_loss, self.steps_since_mean = self.total_loss, self.steps_since_mean, 0.0, 0
        return total / max(1, count)

    def _compute_gradients(self, step: int) -> tuple[float, Gradients]:
        """Mean loss and mean gradients over the micro-batches; None for a parameter that no loss depends on."""
        count = self.recipe.micro_batches

        def compute_micro_batch(micro_batch: int) -> tuple[float, Gradients]:
            """Loss and gradients of one micro-batch."""
            torch.set_num_threads(max(1, self.num_threads // count))
            with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
                loss = self.loss_of(self.generator_for(step, micro_batch))
            return float(loss.detach()), torch.autograd.grad(loss, self.parameters, allow_unused=True)

        # a single micro-batch stays in this thread: a second OpenMP team would make both sleep at every barrier
        run = map if count == 1 else self.thread_pool.map
        losses, gradients = zip(*run(compute_micro_batch, range(count)), strict=True)
        gradients_by_parameter = zip(*gradients, strict=True)
        return sum(losses) / count, tuple(mean_gradient(each, count) for each in gradients_by_parameter)

    def _update_ema(self, decay: float) -> None:
        """Move the EMA's weights towards the module's; integers are copied."""
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value.detach(), 1 - decay)
            else:
                self.ema[name].copy_(value)


def mean_gradient(gradients: Gradients, count: int) -> Tensor | None:
    """The sum of a parameter's gradients over `count`; None where no micro-batch has one."""
    present = [gradient for gradient in gradients if gradient is not None]
    return torch.stack(present).sum(0) / count if present else None
