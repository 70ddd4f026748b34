"""Precision of training (bfloat16 autocast or float32), and the seed of its dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmaudio.config import TrainConfig
from mmaudio.errors import ConfigError
from mmaudio.finetune.dataset import PROJECTIONS
from mmaudio.generation.sampler import fast_dtype
from mmaudio.model.networks import MMAudio
from mmaudio.model.weight_dtype import cast_weights


def compute_dtype(device: torch.device, amp: bool) -> torch.dtype:
    """bfloat16 where `amp` is true and the machine has instructions for it, else float32.

    Without such instructions bfloat16 is emulated, and slower. With them, on a CPU with AVX512-BF16 and AMX, the mean
    loss of 64 samples differs from float32's by 5e-6 (tiny_16k) and 7e-6 (small_16k) of its size, no sample's by more
    than 8e-4, and the gradient by 1 and 2 % of its length: `python -m benchmarks.bf16_error --model tiny_16k`.
    """
    return fast_dtype(device) if amp else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The autocast context of the network; disabled for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def cast_frozen_weights(network: MMAudio, config: TrainConfig, dtype: torch.dtype) -> None:
    """Cast frozen weights to the `dtype` that autocast rounds them to at every use anyway.

    That saves memory and time at no cost. DoRA needs the norms of the base's weights, which therefore stay as they
    are unless `base_bf16` casts the blocks. Raises ConfigError for base_bf16 in another type.
    """
    if config.base_bf16 and dtype != torch.bfloat16:
        raise ConfigError("base_bf16=true needs amp=true on a machine that computes in bfloat16; leave it false here")
    for name, module in network.named_children():
        if (name not in PROJECTIONS and not config.lora.use_dora) or (config.base_bf16 and name.endswith("_blocks")):
            cast_weights(module, dtype, only_frozen=True)


@contextmanager
def seeded_dropout(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's default generators, which dropout draws from, for the block; they are restored after it."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        if on_gpu:
            torch.cuda.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), device)
        yield
