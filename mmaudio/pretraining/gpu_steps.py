"""Training steps on a GPU: no step waits for the device, and one captured step is replayed as a CUDA graph.

The first steps are plain calls on a side stream; then forward, backward, clipping, optimizers and EMA are captured as
one graph, which reads its inputs from fixed tensors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmaudio.errors import TrainingError
from mmaudio.pretraining.muon import MuonAdamW
from mmaudio.pretraining.objective import Draws, Objective
from mmaudio.pretraining.recipe import Recipe
from mmaudio.utils.graph_capture import WARM_UP_CALLS, GraphCapture


class GpuSteps:
    """Optimizer steps whose losses stay on the device until `mean_loss` reads them; on a CPU they run uncaptured."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: MuonAdamW,
        ema: dict[str, Tensor],
        objective: Objective,
        recipe: Recipe,
        generator_for: Callable[[int, int], torch.Generator],
    ) -> None:
        """`generator_for(step, micro_batch)` gives the random numbers; `optimizer` is capturable."""
        self.module, self.optimizer, self.objective, self.recipe = module.train(), optimizer, objective, recipe
        self.generator_for = generator_for
        self.parameters = [value for value in module.parameters() if value.requires_grad]
        self.device = self.parameters[0].device
        state = module.state_dict()
        float_names = [name for name, value in state.items() if value.is_floating_point()]
        self.ema_values, self.values = [ema[name] for name in float_names], [state[name] for name in float_names]
        self.ema_rate = torch.zeros((), device=self.device)
        """1 minus the EMA's decay."""
        self.totals = torch.zeros(2, device=self.device)
        """Sums of the losses and of the gradient norms since the last `mean_loss`."""
        self.steps_since_mean, self.steps_run = 0, 0
        self.inputs: list[Draws] = []
        """Fixed tensors that a step reads, for each micro-batch."""
        use_graph = self.device.type == "cuda" and recipe.cuda_graph
        self.graph_capture = GraphCapture(self.device) if use_graph else None
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, step: int) -> None:
        """Launch step 0, 1, ..."""
        self._fill_inputs(step)
        self.optimizer.set_learning_rates(step)
        self.ema_rate.fill_(1 - self.recipe.ema_decay_at(step))
        if self.graph_capture is None:
            self._compute()
        elif self.steps_run < WARM_UP_CALLS:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*capturable")  # about calls outside of a capture
                self.graph_capture.warm_up(self._compute)
        else:
            if self.graph is None:
                self.graph = self._capture(self.graph_capture)
            self.graph.replay()
        self.steps_run, self.steps_since_mean = self.steps_run + 1, self.steps_since_mean + 1

    def mean_loss(self, step: int) -> float:
        """The mean loss since the last call; TrainingError where a loss or gradient since then is not finite."""
        loss, grad_norm = self.totals.tolist()  # waits for the device
        count, self.steps_since_mean = self.steps_since_mean, 0
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"step {step}, or one of the {count - 1} before it: the loss or the gradient is not finite "
                f"(sums {loss}, {grad_norm}); lower the learning rate"
            )
        self.totals.zero_()
        return float(loss / max(1, count))

    def _fill_inputs(self, step: int) -> None:
        """Draw the step's random numbers and copy them to the tensors that the step reads."""
        for micro_batch in range(self.recipe.micro_batches):
            draws = self.objective.draw(self.generator_for(step, micro_batch))
            if len(self.inputs) <= micro_batch:
                self.inputs.append(tuple(torch.empty_like(drawn, device=self.device) for drawn in draws))
            for target, drawn in zip(self.inputs[micro_batch], draws, strict=True):
                if not drawn.numel():
                    continue
                # pinned memory is not given out again before its copy is done
                target.copy_(drawn.pin_memory() if target.is_cuda else drawn, non_blocking=True)

    def _compute(self) -> None:
        """Forward, backward, clipping, optimizers and EMA on the inputs."""
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
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.apply_gradients()
        with torch.no_grad():
            self.totals.add_(torch.stack([loss.detach().float(), grad_norm.float()]))
            differences = torch._foreach_sub(self.values, self.ema_values)
            torch._foreach_mul_(differences, self.ema_rate)
            torch._foreach_add_(self.ema_values, differences)

    def _capture(self, graph_capture: GraphCapture) -> torch.cuda.CUDAGraph:
        """The graph of a step, which is not computed."""
        torch.cuda.synchronize(self.device)
        for parameter in self.parameters:
            parameter.grad = None
        graph, _ = graph_capture.capture(self._compute, "Take --eager: it trains the same, slower")
        return graph
