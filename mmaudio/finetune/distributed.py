"""The processes that train together: one, or several under torchrun, each with a share of every step's clips."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from mmaudio.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class Team:
    """This process among `size`; with more than one, torch.distributed has been initialised."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """What this process computes on, and exchanges from."""

    @property
    def leads(self) -> bool:
        """True for the process that writes and prints."""
        return self.rank == 0

    def share(self, items: int) -> slice:
        """This process's part of `items`; ConfigError where they do not divide."""
        if items % self.size:
            raise ConfigError(
                f"{items} clips per step do not divide among {self.size} processes: "
                "change batch_size or gradient_accumulation_steps"
            )
        part = items // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def sum(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by its sum over the processes, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        with self._together():
            dist.all_reduce(flat)
        for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            with self._together():
                dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether any process raised its flag."""
        if self.size == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.device)
        with self._together():
            dist.all_reduce(raised)
        return bool(raised.item() > 0)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """TrainingError where the others cannot be reached: torch's RuntimeError in words."""
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(
                f"process {self.rank} of {self.size} lost the others ({str(error).splitlines()[0][:200]}): one of them "
                "has died, and its own message, if any, stands above. The same command continues from the last save"
            ) from error
