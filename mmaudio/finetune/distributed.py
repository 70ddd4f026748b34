"""The processes of a distributed run: rank, world size, and the sums and barriers between them.

Without torchrun there is one process, and nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from mmaudio.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class Distributed:
    """One process among `world_size`; with more than one, torch.distributed has been initialised."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """What this process computes on, and exchanges from."""

    @property
    def is_main(self) -> bool:
        """True for the process that writes and prints."""
        return self.rank == 0

    def shard(self, num_clips: int) -> slice:
        """This rank's equal share of a step's clips; ConfigError where they do not divide."""
        if num_clips % self.world_size:
            raise ConfigError(
                f"{num_clips} clips per step do not divide among {self.world_size} processes: change batch_size or "
                "gradient_accumulation_steps"
            )
        return self.uneven_shard(num_clips)

    def uneven_shard(self, num_items: int) -> slice:
        """This rank's share of `num_items`, which may be one less or more than another's, or none."""
        return slice(num_items * self.rank // self.world_size, num_items * (self.rank + 1) // self.world_size)

    def all_reduce_sum(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by its sum over the processes, in one exchange."""
        if self.world_size == 1:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        with self._explain_lost_process():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def all_reduce_min(self, value: int) -> int:
        """The smallest `value` of the processes."""
        values = torch.zeros(self.world_size, device=self.device)
        values[self.rank] = value
        self.all_reduce_sum([values])
        return int(values.min())

    def all_reduce_any(self, flag: bool) -> bool:
        """True where the flag is true in any process."""
        if self.world_size == 1:
            return flag
        count = torch.tensor([float(flag)], device=self.device)
        with self._explain_lost_process():
            dist.all_reduce(count)
        return bool(count.item() > 0)

    def barrier(self) -> None:
        """Return once every process has arrived here."""
        if self.world_size > 1:
            with self._explain_lost_process():
                dist.barrier()

    @contextmanager
    def _explain_lost_process(self) -> Iterator[None]:
        """Turn torch's RuntimeError, where another process cannot be reached, into a TrainingError."""
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(
                f"process {self.rank} of {self.world_size} lost the others ({str(error).splitlines()[0][:200]}): one "
                "of them has died, and its own message, if any, stands above. The same command continues from the "
                "last save"
            ) from error
