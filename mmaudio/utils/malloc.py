"""The C library's memory allocator, set to keep freed memory for the next request.

By default glibc returns large blocks to the system as soon as they are freed, and the system fills every page with
zeros when it is touched again. A training step of small_16k on a CPU had 48,000 such page faults, a tenth of its time.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
LARGEST_KEPT_BLOCK = 256 << 20
"""Bytes; larger blocks are returned to the system."""
LARGEST_KEPT_TOTAL = 2**31 - 1
"""Bytes at the end of the heap, the largest value of the parameter."""


def keep_freed_memory() -> bool:
    """Set glibc's allocator for this process; False elsewhere, or where the environment sets it (`MALLOC_...`)."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.getenv("GLIBC_TUNABLES", "")
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # as with musl
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK), (M_TRIM_THRESHOLD, LARGEST_KEPT_TOTAL))
    return all(mallopt(parameter, value) for parameter, value in settings)  # 0: not taken
