"""The velocity of a solver as a CUDA graph: recorded once for a batch, and replayed at each later evaluation.

    latents, counts = solve(record_velocity(velocity, device, "euler", 25), noise, "euler", 25)

A batch of a few clips keeps a GPU busy for less time than a CPU takes to launch its kernels. B batch, N latent tokens,
C latent channels.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from mmaudio.errors import TrainingError
from mmaudio.generation.solver import ADAPTIVE
from mmaudio.model.flow_matching import Velocity
from mmaudio.utils.graph_capture import WARM_UP_CALLS, GraphCapture

MIN_STEPS = 3 * WARM_UP_CALLS
"""Of fewer, too few are left to be replayed after the plain calls before the recording."""


def record_velocity(velocity: Velocity, device: torch.device, method: str, num_steps: int) -> Velocity:
    """`velocity`, recorded where that repays: on a GPU, for a solver of some steps.

    The weights and conditions that it reads must stay where they are in memory.
    """
    is_long = method == ADAPTIVE or num_steps >= MIN_STEPS
    return RecordedVelocity(velocity, GraphCapture(device)) if device.type == "cuda" and is_long else velocity


class RecordedVelocity:
    """A velocity whose first calls are plain; then its kernels are recorded, and replayed from there on.

    Where recording fails, a warning says so, and all calls are plain. Latents must keep their shape.
    """

    def __init__(self, velocity: Velocity, capture: GraphCapture) -> None:
        self._velocity, self._capture = velocity, capture
        self._calls = 0
        self._recorded: tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], Tensor] | None = None
        """The graph, the inputs that it reads and the output that it writes."""

    def __call__(self, latent: Tensor, t: Tensor) -> Tensor:
        """Velocity of a latent (B, N, C) at flow time t: (B, N, C)."""
        self._calls += 1
        if self._calls <= WARM_UP_CALLS:
            return self._warm_up(latent, t)
        if self._calls == WARM_UP_CALLS + 1:
            self._record(latent, t)
        if self._recorded is None:
            return self._velocity(latent, t)
        graph, inputs, output = self._recorded
        for recorded_input, value in zip(inputs, (latent, t), strict=True):
            recorded_input.copy_(value)
        graph.replay()
        return output.clone()

    def _warm_up(self, latent: Tensor, t: Tensor) -> Tensor:
        velocities: list[Tensor] = []
        self._capture.warm_up(lambda: velocities.append(self._velocity(latent, t)))
        return velocities[0]

    def _record(self, latent: Tensor, t: Tensor) -> None:
        inputs = latent.clone(), t.clone()
        try:
            graph, output = self._capture.capture(lambda: self._velocity(*inputs), "The steps are computed one by one")
        except (TrainingError, torch.OutOfMemoryError) as error:
            warnings.warn(f"sampling goes on without recorded steps: {error}", stacklevel=2)
        else:
            self._recorded = graph, inputs, output
