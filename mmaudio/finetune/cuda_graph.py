"""A training batch's forward and backward pass recorded once as a CUDA graph, and replayed at every step.

A small network's step is hundreds of short operations, and a processor takes longer to start them than a GPU to run
them; a replay starts them all at once. The kernels, and so the numbers, are those of the plain pass.

B clips.
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from mmaudio.config import TrainConfig
from mmaudio.errors import TrainingError
from mmaudio.finetune.dataset import Material
from mmaudio.finetune.state import Draws, TrainState
from mmaudio.finetune.step import Batch, batch_losses

WARM_UP = 3
"""Plain passes before recording: libraries choose their kernels and compiled blocks are compiled in them."""


def batch_for(clips: Material, config: TrainConfig) -> Batch:
    """How a run's batches are computed: recorded on a GPU, unless that is off or something new happens in each."""
    fixed = clips.projected is not None and config.lora.enabled
    plain = config.gradient_checkpointing or config.preserve_base
    if clips.mean.device.type == "cuda" and config.cuda_graph and fixed and not plain:
        return RecordedBatch()
    return batch_losses


class RecordedBatch:
    """`batch_losses` of one run; every number of clips, and every phase of the adapter, is recorded as it first comes.

    Gradients are added to those that the parameters have, in tensors that stay the same.
    """

    def __init__(self) -> None:
        self._recordings: dict[int, _Recording] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._phase = 0

    def __call__(self, state: TrainState, clips: Material, rows: Draws, config: TrainConfig) -> Tensor:
        """The losses (B,) of the drawn clips; their gradients are added."""
        if state.phase != self._phase:  # other parameters
            self._recordings.clear()
            self._gradients.clear()
            self._phase = state.phase
        count = len(rows.t)
        if count not in self._recordings:
            self._recordings[count] = _Recording(state, clips, rows, config, self._gradients)
        self._adopt()
        return self._recordings[count].replay(rows)

    def _adopt(self) -> None:
        """Give the parameters their tensors for gradients back, at zero, where the optimizer has let go of them."""
        fresh = [gradient for weight, gradient in self._gradients.items() if weight.grad is not gradient]
        if fresh:
            torch._foreach_zero_(fresh)
        for weight, gradient in self._gradients.items():
            weight.grad = gradient


class _Recording:
    """One graph with the tensors that it reads and writes."""

    def __init__(
        self,
        state: TrainState,
        clips: Material,
        rows: Draws,
        config: TrainConfig,
        gradients: dict[nn.Parameter, Tensor],
    ) -> None:
        self.rows = rows.map(torch.clone)
        device, weights = rows.t.device, list(state.trained().values())
        kept, dropout = [weight.grad for weight in weights], torch.cuda.get_rng_state(device)
        gc.collect()  # what is left of earlier passes would hold the gradients to the stream that those ran on
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                state.optimizer.zero_grad()
                batch_losses(state, clips, self.rows, config)
        torch.cuda.current_stream(device).wait_stream(stream)
        for weight in weights:
            if weight.grad is not None:
                weight.grad = gradients.setdefault(weight, torch.zeros_like(weight))
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(device), torch.cuda.graph(self.graph):
                self.losses = batch_losses(state, clips, self.rows, config)
        except RuntimeError as error:
            raise TrainingError(
                f"cuda_graph=true: recording failed ({str(error).splitlines()[0]}). Take cuda_graph=false: it trains "
                "the same, slower"
            ) from error
        for weight, gradient in zip(weights, kept, strict=True):
            weight.grad = gradient
        torch.cuda.set_rng_state(dropout, device)

    def replay(self, rows: Draws) -> Tensor:
        """The losses (B,) of other draws."""
        for own, new in zip(self.rows.tensors(), rows.tensors(), strict=True):
            own.copy_(new)
        self.graph.replay()
        return self.losses.clone()
