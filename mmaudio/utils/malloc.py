"""The C library's memory allocator, set to use freed memory again.

By default glibc returns large blocks to the system as soon as they are freed, and the system fills every page with
zeros when it is touched again. A training step of small_16k on a CPU had 40,000 such page faults.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping

SETTINGS = {
    -3: (256 << 20, 32 << 20),  # M_MMAP_THRESHOLD: larger blocks are returned; older versions take 32 MB at most
    -1: (2**31 - 1,),  # M_TRIM_THRESHOLD: so much may be free at the end of the heap
}
"""Bytes by parameter of mallopt(3); of several values the first that is taken."""
ALLOCATOR_VARIABLES = re.compile(r"^(MALLOC_\w+=|GLIBC_TUNABLES=.*glibc\.malloc)")
"""Variables of the environment that set the allocator."""


def reuse_freed_memory(environment: Mapping[str, str]) -> None:
    """Set glibc's allocator for this process, unless its `environment` does; elsewhere nothing changes."""
    is_set = any(ALLOCATOR_VARIABLES.match(f"{name}={value}") for name, value in environment.items())
    if is_set or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent with musl
    if mallopt is not None:
        for parameter, values in SETTINGS.items():
            any(mallopt(parameter, value) for value in values)  # 0: not taken
