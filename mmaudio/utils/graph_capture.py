"""CUDA graph capture: a function's kernels are recorded once, and later replayed with one launch.

Small models run hundreds of short kernels per step, and a CPU takes longer to launch them than a GPU to run them. The
kernels of a replay, and so the numbers, are those of the plain call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from mmaudio.errors import TrainingError

WARM_UP_CALLS = 3
"""Plain calls before a capture: libraries choose their kernels in them, and compiled functions are compiled."""
Result = TypeVar("Result")


class GraphCapture:
    """Warm-up calls on a side stream, then the capture of a call, on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, function: Callable[[], object]) -> None:
        """Call `function` on the side stream, after what the current stream holds and before what it gets next."""
        current_stream = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current_stream)
        with torch.cuda.stream(self._stream):
            function()
        current_stream.wait_stream(self._stream)

    def capture(self, function: Callable[[], Result], alternative: str) -> tuple[torch.cuda.CUDAGraph, Result]:
        """The graph of a call of `function`, which is not computed, and its result, which every replay writes anew.

        Raises TrainingError, which names the `alternative`, where an operation cannot be captured, and torch's
        OutOfMemoryError.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self.device), torch.cuda.graph(graph):
                result = function()
        except RuntimeError as error:
            if isinstance(error.__context__, torch.OutOfMemoryError):  # ending the capture then fails, too
                raise error.__context__ from None
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).splitlines()[0]
            raise TrainingError(f"capturing the CUDA graph failed ({reason}). {alternative}") from error
        return graph, result
