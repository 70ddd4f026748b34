"""Gradient accumulation as a CUDA graph (`cuda_graph`): a micro-batch's forward and backward pass, replayed.

B clips of a micro-batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmaudio.config import TrainConfig
from mmaudio.errors import TrainingError
from mmaudio.finetune.dataset import ClipDataset
from mmaudio.finetune.draws import Draws
from mmaudio.finetune.state import TrainState
from mmaudio.finetune.step import GradientAccumulator, accumulate_gradients
from mmaudio.utils.graph_capture import WARM_UP_CALLS, GraphCapture


def build_accumulator(
    dataset: ClipDataset, config: TrainConfig, print_line: Callable[[str], object] = print
) -> GradientAccumulator:
    """`accumulate_gradients`, or CUDA graphs of it: on a GPU, where every pass runs the same kernels.

    Unless `cuda_graph` is true, a failure to capture is told to `print_line`, and passes are then not captured.
    """
    on_gpu, same_inputs = dataset.mean.device.type == "cuda", dataset.projected is not None and config.lora.enabled
    if on_gpu and config.cuda_graph is not False and same_inputs and not config.gradient_checkpointing:
        return GraphedAccumulator(None if config.cuda_graph else print_line)
    return accumulate_gradients


class GraphedAccumulator:
    """`accumulate_gradients` as CUDA graphs: one per micro-batch size, captured anew in every phase of the adapter.

    Gradients are accumulated in tensors that stay the same. A failure to capture is a TrainingError; with `print_line`
    it is one line there, and this pass and all later ones are not captured.
    """

    def __init__(self, print_line: Callable[[str], object] | None = None) -> None:
        self._print_line = print_line
        self._failed = False
        self._graphs: dict[int, _MicroBatchGraph] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._phase = 0

    def __call__(self, state: TrainState, dataset: ClipDataset, draws: Draws, config: TrainConfig) -> Tensor:
        """The losses (B,) of the drawn clips; their gradients are added."""
        if state.phase != self._phase:  # other parameters
            self._clear()
            self._phase = state.phase
        if len(draws) not in self._graphs and not self._failed:
            self._capture(state, dataset, draws, config)
        if self._failed:
            return accumulate_gradients(state, dataset, draws, config)
        self._restore_gradient_tensors()
        return self._graphs[len(draws)].replay(draws)

    def _capture(self, state: TrainState, dataset: ClipDataset, draws: Draws, config: TrainConfig) -> None:
        """Capture a graph for this number of clips; gradients and random generators are then what they were before."""
        device = draws.t.device
        gradients = {parameter: parameter.grad for parameter in state.trainable_parameters().values()}
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self._graphs[len(draws)] = _MicroBatchGraph(state, dataset, draws, config, self._gradients)
        except torch.OutOfMemoryError:  # smaller passes need the memory of earlier graphs
            self._clear()
            raise
        except TrainingError as error:
            if self._print_line is None:
                raise
            self._failed = True
            self._print_line(f"cuda_graph: batches are not recorded, training goes on without ({error})")
        finally:
            for parameter, gradient in gradients.items():
                parameter.grad = gradient

    def _clear(self) -> None:
        self._graphs.clear()
        self._gradients.clear()

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
        gc.collect()  # graphs of earlier passes would hold the gradients to the stream that those ran on
        capture = GraphCapture(device)

        def accumulate() -> Tensor:
            """Add the gradients of the graph's draws."""
            return accumulate_gradients(state, dataset, self.draws, config)

        def warm_up() -> None:
            """Run what is recorded some times, as recording needs."""
            for _ in range(WARM_UP_CALLS):
                state.optimizer.zero_grad()
                accumulate()

        capture.warm_up(warm_up)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = gradients.setdefault(parameter, torch.zeros_like(parameter))
        alternative = "With cuda_graph=false it trains the same, slower"
        self.graph, self.losses = capture.capture(accumulate, alternative)

    def replay(self, draws: Draws) -> Tensor:
        """The losses (B,) of other draws."""
        for static_input, tensor in zip(self.draws.tensors(), draws.tensors(), strict=True):
            static_input.copy_(tensor)
        self.graph.replay()
        return self.losses.clone()
