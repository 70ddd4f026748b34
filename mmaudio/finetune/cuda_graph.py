"""Gradient accumulation as a CUDA graph (`cuda_graph=true`): a micro-batch's forward and backward pass, replayed.

B clips of a micro-batch.
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from mmaudio.config import TrainConfig
from mmaudio.finetune.dataset import ClipDataset
from mmaudio.finetune.draws import Draws
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import GradientAccumulator, accumulate_gradients
from mmaudio.utils.graph_capture import WARM_UP_CALLS, GraphCapture


def build_accumulator(dataset: ClipDataset, config: TrainConfig) -> GradientAccumulator:
    """`accumulate_gradients`, or CUDA graphs of it: on a GPU, where every pass runs the same kernels."""
    on_gpu, same_inputs = dataset.mean.device.type == "cuda", dataset.projected is not None and config.lora.enabled
    if on_gpu and config.cuda_graph and same_inputs and not config.gradient_checkpointing:
        return GraphedAccumulator()
    return accumulate_gradients


class GraphedAccumulator:
    """`accumulate_gradients` as CUDA graphs: one per micro-batch size, captured anew in every phase of the adapter.

    Gradients are accumulated in tensors that stay the same.
    """

    def __init__(self) -> None:
        self._graphs: dict[int, _MicroBatchGraph] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._phase = 0

    def __call__(self, state: TrainState, dataset: ClipDataset, draws: Draws, config: TrainConfig) -> Tensor:
        """The losses (B,) of the drawn clips; their gradients are added."""
        if state.phase != self._phase:  # other parameters
            self._graphs.clear()
            self._gradients.clear()
            self._phase = state.phase
        batch_size = len(draws)
        if batch_size not in self._graphs:
            self._graphs[batch_size] = _MicroBatchGraph(state, dataset, draws, config, self._gradients)
        self._restore_gradient_tensors()
        return self._graphs[batch_size].replay(draws)

    def _restore_gradient_tensors(self) -> None:
        """Give the parameters their gradient tensors back, at zero, where the optimizer has set them to None."""
        cleared = [gradient for parameter, gradient in self._gradients.items() if parameter.grad is not gradient]
        if cleared:
            torch._foreach_zero_(cleared)
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient


class _MicroBatchGraph:
    """One CUDA graph with the tensors that it reads and writes."""

    def __init__(
        self,
        state: TrainState,
        dataset: ClipDataset,
        draws: Draws,
        config: TrainConfig,
        gradients: dict[nn.Parameter, Tensor],
    ) -> None:
        self.draws = draws.map(torch.clone)
        device, parameters = draws.t.device, list(state.trainable_parameters().values())
        earlier_gradients = [parameter.grad for parameter in parameters]
        rng_state = torch.cuda.get_rng_state(device)
        gc.collect()  # graphs of earlier passes would hold the gradients to the stream that those ran on
        capture = GraphCapture(device)

        def accumulate() -> Tensor:
            return accumulate_gradients(state, dataset, self.draws, config)

        def warm_up() -> None:
            for _ in range(WARM_UP_CALLS):
                state.optimizer.zero_grad()
                accumulate()

        capture.warm_up(warm_up)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = gradients.setdefault(parameter, torch.zeros_like(parameter))
        alternative = "Take cuda_graph=false: it trains the same, slower"
        self.graph, self.losses = capture.capture(accumulate, alternative)
        for parameter, gradient in zip(parameters, earlier_gradients, strict=True):
            parameter.grad = gradient
        torch.cuda.set_rng_state(rng_state, device)

    def replay(self, draws: Draws) -> Tensor:
        """The losses (B,) of other draws."""
        for static_input, tensor in zip(self.draws.tensors(), draws.tensors(), strict=True):
            static_input.copy_(tensor)
        self.graph.replay()
        return self.losses.clone()
