"""What training computes in, and how its dropout is seeded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmaudio.errors import ConfigError
from mmaudio.generation.sampler import fast_dtype


def compute_dtype(device: torch.device, amp: bool) -> torch.dtype:
    """bfloat16 where `amp` asks for it and the machine has instructions for it, else float32.

    Without such instructions bfloat16 is emulated, and slower.
    """
    return fast_dtype(device) if amp else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context that the network runs in."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def keep_in_bf16(blocks: list[nn.Module], dtype: torch.dtype) -> None:
    """Hold the frozen weights of linears and convolutions in bfloat16, as autocast rounds them at every use anyway.

    Raises ConfigError where training computes in another `dtype`.
    """
    if dtype != torch.bfloat16:
        raise ConfigError("base_bf16=true needs amp=true on a machine that computes in bfloat16; leave it false here")
    for block in blocks:
        for module in block.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                for weight in module.parameters(recurse=False):
                    if not weight.requires_grad:
                        weight.data = weight.data.to(dtype)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within it torch's default generators, which dropout draws from, start at `seed`; after it they are as before."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        if on_gpu:
            torch.cuda.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), device)
        yield
