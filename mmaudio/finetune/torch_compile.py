"""torch.compile (`compile=true`): which blocks are compiled, and the error where this machine has no compiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from mmaudio.config import TrainConfig
from mmaudio.errors import ConfigError
from mmaudio.model.networks import MMAudio

COMPILER_MODULES = ("torch._dynamo", "torch._inductor")
"""Modules whose errors are those of torch.compile."""


def eager_mode(config: TrainConfig) -> AbstractContextManager[object]:
    """Context in which blocks run without torch.compile: for evaluations, whose shapes would each be compiled anew."""
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()


@contextmanager
def explain_compile_errors(device: torch.device) -> Iterator[None]:
    """Turn a failure to compile, where blocks are first used, into a ConfigError that says what is missing."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(COMPILER_MODULES):
            raise
        requirement = "Triton and a C compiler (gcc)" if device.type == "cuda" else "a C++ compiler (g++)"
        raise ConfigError(
            f"compile=true: torch.compile does not work here ({str(error).splitlines()[0][:200]}). It needs "
            f"{requirement}: install that, or take compile=false, which trains the same"
        ) from error


def can_compile(network: MMAudio) -> bool:
    """Whether anything can be compiled for the network's device here."""
    try:
        _check_compiler(network)
    except ConfigError:
        return False
    return True


def compile_blocks(network: MMAudio) -> None:
    """Have every block compiled when it is first used; blocks of the same structure share what is compiled.

    ConfigError, before anything is trained, where nothing can be compiled here.
    """
    _check_compiler(network)
    for block in (*network.joint_blocks, *network.fused_blocks):
        block.compile(dynamic=False)


def _check_compiler(network: MMAudio) -> None:
    """Compile a trifle for the network's device; ConfigError where that is not possible."""
    with explain_compile_errors(network.latent_mean.device):
        torch.compile(torch.sin, dynamic=False)(network.latent_mean)
