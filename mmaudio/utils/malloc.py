"""The C library's memory allocator, set to keep freed memory for the next request.

By default glibc returns large blocks to the system as soon as they are freed, and the system fills every page with
zeros when it is touched again. A training step of small_16k on a CPU had 48,000 such page faults, a tenth of its time.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
LARGEST_KEPT_BLOCK = 256 << 20
"""Bytes; larger blocks are returned to the system."""
LARGEST_KEPT_TOTAL = 2**31 - 1
"""Bytes at the end of the heap, the largest value of the parameter."""


ENVIRONMENT = re.compile(r"^(MALLOC_\w+=|GLIBC_TUNABLES=.*glibc\.malloc)")
"""Variables of the environment that set the allocator."""
_is_kept = False


def keep_freed_memory(environment: Mapping[str, str]) -> None:
    """Set glibc's allocator for this process, unless its `environment` does; elsewhere nothing changes."""
    global _is_kept
    if not sys.platform.startswith("linux") or any(ENVIRONMENT.match(f"{k}={v}") for k, v in environment.items()):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent with musl
    if mallopt is not None:
        settings = ((M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK), (M_TRIM_THRESHOLD, LARGEST_KEPT_TOTAL))
        _is_kept = all(mallopt(parameter, value) for parameter, value in settings)  # 0: not taken


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` has set the allocator of this process."""
    return _is_kept
