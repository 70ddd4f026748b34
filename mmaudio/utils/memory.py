"""How much memory a device has left."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container or a batch scheduler's job may take."""
OWN_GROUP = Path("/proc/self/cgroup")
"""Where it says which control group in there this process is in."""


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`: of a GPU, or of this machine and the job's own limit in it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = int(psutil.virtual_memory().available)
    limited = left_in_groups(OWN_GROUP, CGROUP)
    return available if limited is None else min(available, limited)


def left_in_groups(stated: Path, root: Path) -> int | None:
    """The least that is left in the control group (version 2) that the file `stated` names and in those around it.

    Their folders lie below `root`, which is a container's own group. None where none of them states a limit.
    """
    try:
        lines = stated.read_text().splitlines()
    except OSError:
        lines = []
    own = PurePosixPath(next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/"))
    around = (own, *own.parents) if ".." not in own.parts else (PurePosixPath("/"),)  # "..": not to be seen from here
    limits = (left_in_group(root / group.relative_to("/")) for group in around)
    return min((left for left in limits if left is not None), default=None)


def left_in_group(folder: Path) -> int | None:
    """Bytes left below the limit that the control group (version 2) of `folder` states, None where it states none.

    Files that are held in memory only to be fast count as free.
    """
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stated = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used) + int(stated.get("inactive_file", 0)))
