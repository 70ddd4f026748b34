"""What `compile=true` says where this machine has nothing to compile with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmaudio.errors import ConfigError

COMPILERS = ("torch._dynamo", "torch._inductor")
"""Modules whose errors are those of compiling."""


@contextmanager
def compile_errors(device: torch.device) -> Iterator[None]:
    """Within it a failure to compile, where blocks are first used, is a ConfigError that says what is missing."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(COMPILERS):
            raise
        wanted = "Triton and a C compiler (gcc)" if device.type == "cuda" else "a C++ compiler (g++)"
        raise ConfigError(
            f"compile=true: torch.compile does not work here ({str(error).splitlines()[0][:200]}). It needs {wanted}: "
            "install that, or take compile=false, which trains the same"
        ) from error
